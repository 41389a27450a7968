"""`auto_find_batch_size`: a smaller batch after memory ran out, with the rows of an optimizer step unchanged.

Trainer starts its loop again with a smaller batch, on the weights as they are by then. Here accumulation increases by
what the batch decreases, and if optimizer steps were done, the loop resumes from a checkpoint of the last one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import SaveStrategy

from ..config.setting_names import name_settings
from ..errors import ParamsError
from .checkpoints import STATE

if TYPE_CHECKING:
    from transformers import TrainingArguments
    from transformers.trainer_utils import TrainOutput
    from trl import SFTTrainer
    from trl import SFTTrainer as _Base
else:
    _Base = object  # so that it can precede any subclass of SFTTrainer

NONE_FITS = "No executable batch size found, reached zero."  # in accelerate's words, by which it is recognised


def smaller_batch(batch: int, accumulation: int) -> tuple[int, int] | None:
    """Return the largest batch of at most half the rows, and its accumulation, with the same rows per optimizer step.

    None for a batch of one row.

    Args:
        batch: Rows of a batch on one device.
        accumulation: Batches per optimizer step.
    """
    rows = batch * accumulation
    fits = next((size for size in range(batch // 2, 0, -1) if rows % size == 0), None)
    return None if fits is None else (fits, rows // fits)


def check_batch_finder(args: TrainingArguments) -> None:
    """Refuse `auto_find_batch_size` in several processes: the others would wait for the one that ran out of memory.

    Raises:
        ParamsError: There are several.
    """
    if args.auto_find_batch_size and args.world_size > 1:
        raise ParamsError(
            f"auto_find_batch_size is for one process, and there are {args.world_size}, which may not run out of "
            "memory at the same step; drop it, and give a smaller --batch-size and more --gradient-accumulation."
        )


class BatchFinder:
    """The attempts of one call of `train()`.

    Args:
        trainer: Whose batch it is.
    """

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        self.temporary: Path | None = None  # a checkpoint that only the next attempt needs
        self._before: TrainerState | None = None
        self._begun_at = 0

    def next_attempt(self, batch: int, checkpoint: str | None, trial: Any) -> tuple[int, str | None]:
        """Return the batch size of an attempt and the checkpoint that it resumes from, and set accumulation.

        Args:
            batch: What Trainer would try: the configured size, or that of the checkpoint in the first attempt.
            checkpoint: What the first attempt resumes from.
            trial: As in Trainer.

        Raises:
            RuntimeError: A batch of one row did not fit.
        """
        trainer, args = self.trainer, self.trainer.args
        own = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        if self._before is None:
            rows = own[0] * own[1]
            found = (batch, rows // batch) if rows % batch == 0 else own
        else:
            smaller = smaller_batch(*own)
            if smaller is None:
                raise RuntimeError(NONE_FITS)
            found = smaller
            trainer.accelerator.print(
                name_settings(
                    f"Out of memory with {own[0]} rows per batch at step {trainer.state.global_step}; continuing with "
                    f"--batch-size {found[0]} --gradient-accumulation {found[1]}, the same rows per optimizer step."
                )
            )
            if trainer.state is not self._before and trainer.state.global_step > self._begun_at:
                trainer.state.train_batch_size = found[0]  # else Trainer warns that the checkpoint has another
                checkpoint = str(self._saved(trial))
        args.per_device_train_batch_size, args.gradient_accumulation_steps = found
        self._before = trainer.state
        self._begun_at = 0
        if checkpoint is not None:
            self._begun_at = TrainerState.load_from_json(str(Path(checkpoint) / STATE)).global_step
        return found[0], checkpoint

    def _saved(self, trial: Any) -> Path:
        """Return a checkpoint of the last optimizer step, whole also if checkpoints are to have the model alone."""
        trainer, args = self.trainer, self.trainer.args
        alone, args.save_only_model = args.save_only_model, False
        try:
            trainer._save_checkpoint(trainer.model, trial)
        finally:
            args.save_only_model = alone
        saved = Path(trainer._get_output_dir(trial=trial)) / f"checkpoint-{trainer.state.global_step}"
        self.remove_temporary()
        if args.save_strategy == SaveStrategy.NO:
            self.temporary = saved
        return saved

    def remove_temporary(self) -> None:
        """Remove the checkpoint that only an attempt needed."""
        if self.temporary is not None and self.trainer.args.should_save:
            shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary = None


class GlobalBatchMixin(_Base):
    """Put in front of `trl.SFTTrainer`: with `auto_find_batch_size` the rows of an optimizer step stay the same."""

    batch_finder: BatchFinder | None = None

    @property
    def keeps_global_batch(self) -> bool:
        """Whether accumulation makes up for a smaller batch."""
        return bool(self.args.auto_find_batch_size)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as SFTTrainer does."""
        self.batch_finder = BatchFinder(self) if self.keeps_global_batch else None
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.batch_finder is not None:
                self.batch_finder.remove_temporary()

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: TrainingArguments | None = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Make one attempt; Trainer makes the next if memory runs out."""
        if self.batch_finder is not None and batch_size is not None:
            batch_size, resume_from_checkpoint = self.batch_finder.next_attempt(
                batch_size, resume_from_checkpoint, trial
            )
            self.forget_step()
        return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, ignore_keys_for_eval)

    def forget_step(self) -> None:
        """Forget what was counted of a step that did not end."""


def with_global_batch(kind: type) -> type:
    """Return a trainer's class with `GlobalBatchMixin`."""
    return kind if issubclass(kind, GlobalBatchMixin) else type(kind.__name__, (GlobalBatchMixin, kind), {})
