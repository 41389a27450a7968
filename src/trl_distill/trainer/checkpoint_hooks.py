"""What a distilling trainer writes and resumes from: checkpoints, and how the student generates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.doors import entered
from ..config.sft_config import TRAINER
from ..data.data_fingerprint import fingerprint
from ..data.packing import PackedRows
from ..data.streaming import is_stream
from ..models.adapters import is_peft_model
from ..models.generation_config import make_saveable
from .checkpoints import begin_anew, check_rows, keep_rows, to_resume_from

if TYPE_CHECKING:
    from trl import SFTTrainer as _Base
else:
    _Base = object  # so that it can stand in front of any subclass of SFTTrainer


class CheckpointsMixin(_Base):
    """Checkpoints that are resumed from on the same rows alone; a part of `DistillationMixin`."""

    distilling: bool
    args: Any
    base_student: Any

    @entered(TRAINER)
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as SFTTrainer does; with `resume_from_checkpoint=True`, from the newest complete checkpoint.

        Raises:
            ParamsError: There is none.
        """
        if self.distilling and resume_from_checkpoint is True:
            resume_from_checkpoint = str(to_resume_from(str(self.args.output_dir)))
        if self.distilling and resume_from_checkpoint and self._learned_from is not None:
            check_rows(str(resume_from_checkpoint), *self._learned_from)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the model as SFTTrainer does; a callback may have left a configuration that cannot be saved.

        Beside an adapter it writes how the student generates too, which PEFT leaves out: it may end elsewhere.
        """
        if self.distilling:
            self.mend_generation_config()
        super()._save(output_dir, state_dict)
        if self.distilling and self.args.should_save and is_peft_model(self.model):
            self.base_student.generation_config.save_pretrained(output_dir or self.args.output_dir)

    @cached_property
    def _learned_from(self) -> tuple[str, Sequence[int]] | None:
        """The fingerprint of the rows to train on, and their numbers; None if they stream."""
        rows: Any = self.train_dataset
        rows = rows.rows if isinstance(rows, PackedRows) else rows
        return None if is_stream(rows) else (fingerprint(rows, leave_out=[self.args.length_column_name]), rows["row"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint; one of the same step is incomplete from now on until it is written."""
        if self.distilling and self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            begin_anew(folder)
            if self._learned_from is not None:
                keep_rows(folder, self._learned_from[0])
        super()._save_checkpoint(model, trial)

    def mend_generation_config(self) -> None:
        """Drop what keeps the student's generation configuration from being saved; see `make_saveable`."""
        said = make_saveable(self.base_student)
        if said:
            self.accelerator.print(said)
