"""The distillation state of checkpoints, and the checks before resuming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from accelerate.utils import broadcast_object_list
from transformers import TrainerState
from transformers.trainer_utils import rotate_checkpoints

from ..data.atomic_file import write_text
from ..data.data_fingerprint import difference, fingerprint
from ..data.folder_lock import LOCK, folder_lock
from ..data.packing import PackedRows
from ..data.streaming import is_stream
from ..errors import DistillError, ParamsError, printable
from ..teachers.local.ema import EmaCallback
from .checkpoints import STATE, begin, fault_of, find_checkpoints, seal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import DistillingTrainer

ROWS = "rows.txt"  # which rows were learned from
Found = TypeVar("Found")


class CheckpointKeeper:
    """Saves the fingerprint of the training rows, and a teacher's moving average.

    Args:
        trainer: Whose checkpoints they are.
    """

    def __init__(self, trainer: DistillingTrainer) -> None:
        self.trainer = trainer
        self._limit: int | None = None  # of checkpoints to keep, while one is written

    @cached_property
    def learned_from(self) -> tuple[str, Sequence[int]] | None:
        """The fingerprint of the rows to train on, and their numbers; None if they stream."""
        rows: Any = self.trainer.train_dataset
        rows = rows.rows if isinstance(rows, PackedRows) else rows
        if is_stream(rows):
            return None
        return fingerprint(rows, leave_out=[self.trainer.args.length_column_name]), rows["row"]

    def to_resume_from(self, given: str | bool | None) -> str | bool | None:
        """Return the checkpoint to resume from: of True the newest one that is complete and intact.

        Raises:
            ParamsError: There is none, it is damaged, or it has learned from other rows.
            DistillError: See `check_best`.
        """
        if given is True:
            given = self._newest()
        elif given:
            checkpoint = Path(given)
            fault = self._from_main(lambda: fault_of(checkpoint))
            if fault is not None:
                raise ParamsError(
                    f"resume_from_checkpoint is {str(given)!r}, which cannot be resumed from: {fault}; give an older "
                    "checkpoint, or True for the newest that is intact."
                )
        if given:
            self._check_rows(given)
            if self.trainer.args.load_best_model_at_end:
                state = TrainerState.load_from_json(str(Path(given, STATE)))
                self.check_best(state.best_model_checkpoint)
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

    def _newest(self) -> str:
        """Return the newest usable checkpoint that the main process finds, and print which ones it has to skip."""
        folder = str(self.trainer.args.output_dir)
        found = self._from_main(lambda: find_checkpoints(folder))
        if found.note:
            self.trainer.accelerator.print(printable(found.note))
        if found.usable is not None:
            return str(found.usable)
        if found.damaged:
            raise ParamsError(
                f"resume_from_checkpoint is True, but no checkpoint in output_dir {folder!r} is intact "
                f"({found.faults}); restore one, or leave it out to start over."
            )
        raise ParamsError(
            f"resume_from_checkpoint is True, but output_dir {folder!r} holds no complete checkpoint; leave it "
            "out to start over."
        )

    def _from_main(self, find: Callable[[], Found]) -> Found:
        """Return what the main process finds, which alone reads the files; all processes call it together."""
        found = [find() if self.trainer.is_world_process_zero() else None]
        broadcast_object_list(found)
        return cast("Found", found[0])

    def _check_rows(self, checkpoint: str) -> None:
        rows = Path(checkpoint, ROWS)
        if not rows.is_file() or self.learned_from is None:
            return
        changed = difference(rows.read_text(encoding="utf-8"), *self.learned_from)
        if changed is not None:
            raise ParamsError(
                f"checkpoint {checkpoint!r} was trained on other rows: {changed}; give the same rows, or start over "
                "without this checkpoint."
            )

    @contextmanager
    def writing(self, checkpoint: Path) -> Iterator[None]:
        """Write the distillation state into a checkpoint that Trainer writes inside, and seal it.

        It is incomplete until then, and Trainer deletes no older one before.
        """
        args, state = self.trainer.args, self.trainer.state
        if args.should_save:
            self._begin(checkpoint)
        self._limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            limit = args.save_total_limit = self._limit
            self._limit = None
        deletes = limit is not None and len(list(checkpoint.parent.glob("checkpoint-*"))) > limit
        self.seal(checkpoint, flush=deletes)
        if args.should_save:
            rotate_checkpoints(
                output_dir=str(checkpoint.parent),
                save_total_limit=limit,
                best_model_checkpoint=state.best_model_checkpoint,
                use_mtime=True,
            )

    def seal(self, checkpoint: Path, *, flush: bool) -> None:
        """Write a checkpoint's checksums, see `seal`, once all processes have written their files."""
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.args.should_save and fault_of(checkpoint) is not None:  # else it was sealed to be uploaded
            seal(checkpoint, flush=flush)

    @contextmanager
    def as_configured(self) -> Iterator[None]:
        """Have the limit of `writing` back in the arguments, which are saved inside."""
        args, now = self.trainer.args, self.trainer.args.save_total_limit
        args.save_total_limit = now if self._limit is None else self._limit
        try:
            yield
        finally:
            args.save_total_limit = now

    def check_best(self, best: str | None) -> None:
        """Refuse weights of the best evaluation whose checkpoint (its path, or None) is damaged.

        Raises:
            DistillError: Naming the file.
        """
        if best is None:
            return
        folder = Path(best)
        fault = self._from_main(lambda: fault_of(folder) if folder.is_dir() else None)
        if fault is not None:
            raise DistillError(
                f"the weights of the best evaluation, in {best!r}, cannot be loaded: {fault}; resume without "
                "load_best_model_at_end, which ends with the weights of the last step."
            )

    def _begin(self, checkpoint: Path) -> None:
        begin(checkpoint)
        if self.learned_from is not None:
            write_text(checkpoint / ROWS, self.learned_from[0])
        if self.trainer.teacher.capabilities.moves:
            EmaCallback(self.trainer.teacher).average.save(checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Load the moving average of a checkpoint."""
        if self.trainer.teacher.capabilities.moves:
            EmaCallback(self.trainer.teacher).load(checkpoint)
