"""The distillation state of checkpoints, and the checks before resuming."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.atomic_file import write_text
from ..data.data_fingerprint import difference, fingerprint
from ..data.folder_lock import LOCK, folder_lock
from ..data.packing import PackedRows
from ..data.streaming import is_stream
from ..errors import ParamsError
from ..teachers.local.ema import EmaCallback
from .checkpoints import STATE, last_complete

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import DistillingTrainer

ROWS = "rows.txt"  # which rows were learned from


class CheckpointKeeper:
    """Saves the fingerprint of the training rows, and a teacher's moving average.

    Args:
        trainer: Whose checkpoints they are.
    """

    def __init__(self, trainer: DistillingTrainer) -> None:
        self.trainer = trainer

    @cached_property
    def learned_from(self) -> tuple[str, Sequence[int]] | None:
        """The fingerprint of the rows to train on, and their numbers; None if they stream."""
        rows: Any = self.trainer.train_dataset
        rows = rows.rows if isinstance(rows, PackedRows) else rows
        if is_stream(rows):
            return None
        return fingerprint(rows, leave_out=[self.trainer.args.length_column_name]), rows["row"]

    def to_resume_from(self, given: str | bool | None) -> str | bool | None:
        """Return the checkpoint to resume from: of True the newest complete one.

        Raises:
            ParamsError: There is none, or it has learned from other rows.
        """
        if given is True:
            folder = str(self.trainer.args.output_dir)
            given = str(last_complete(folder) or "")
            if not given:
                raise ParamsError(
                    f"resume_from_checkpoint is True, but output_dir {folder!r} holds no complete checkpoint; leave it "
                    "out to start over."
                )
        rows = Path(given, ROWS) if given else None
        if rows is not None and rows.is_file() and self.learned_from is not None:
            changed = difference(rows.read_text(encoding="utf-8"), *self.learned_from)
            if changed is not None:
                raise ParamsError(
                    f"resume_from_checkpoint is {str(given)!r}, but train_dataset has changed since: {changed}; give "
                    "the same rows, or leave it out to start over."
                )
        return given

    def lock(self) -> AbstractContextManager[None]:
        """Hold `output_dir` while checkpoints are written into it; see `folder_lock`.

        Two runs that keep no checkpoints may share one.
        """
        args = self.trainer.args
        if args.save_strategy == "no":
            return nullcontext()
        folder = str(args.output_dir)
        # Trainer uploads no name that begins so
        return folder_lock(Path(folder), what=f"output_dir {folder!r}", instead="another output_dir", file=f"_{LOCK}")

    def begin(self, checkpoint: Path) -> None:
        """Mark a checkpoint as incomplete until Trainer writes its state, and write the distillation state."""
        if checkpoint.is_symlink():  # what it leads to is not this run's
            checkpoint.unlink()
        checkpoint.mkdir(parents=True, exist_ok=True)
        (checkpoint / STATE).unlink(missing_ok=True)
        if self.learned_from is not None:
            write_text(checkpoint / ROWS, self.learned_from[0])
        if self.trainer.teacher.capabilities.moves:
            EmaCallback(self.trainer.teacher).average.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Load the moving average of a checkpoint."""
        if self.trainer.teacher.capabilities.moves:
            EmaCallback(self.trainer.teacher).load(checkpoint)
