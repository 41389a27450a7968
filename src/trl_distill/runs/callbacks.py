"""Early ends of a run: a signal, with a checkpoint after the running step, and a non-finite loss, without one.

Also the checksums of checkpoints that TRL's own trainers write.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch import distributed
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..trainer.checkpoints import seal
from ..trainer.mixin import DistillationMixin
from ..trainer.saveable import check_weights
from .stop_signals import say_stopping
from .summary import not_finite

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class StopCallback(TrainerCallback):
    """Ends training with a checkpoint after the step in which a signal came.

    Several processes get a signal in different steps, or one of them alone. They ask each other at the end of each
    step, on the hosts, and read the answer at the end of the next one: all stop after the same step, and none waits
    for its device.

    Attributes:
        number: The signal that ends the run; 0 if none does.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came = 0
        self._group: distributed.ProcessGroup | None = None
        self._asked: tuple[torch.Tensor, distributed.Work] | None = None

    def request(self, number: int) -> None:
        """Note a signal; called between two bytecodes."""
        self._came = number
        say_stopping(number)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Make the group in which processes ask each other."""
        if args.world_size > 1 and distributed.is_initialized() and distributed.is_gloo_available():
            with suppress(RuntimeError):  # hosts whose names lead nowhere: each process then stops after its own step
                self._group = distributed.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop if a signal came."""
        self.number = self._came if self._group is None else self._answer()
        if self.number:
            control.should_save = True
            control.should_training_stop = True
        elif self._group is not None:
            asked = torch.tensor([self._came], device="cpu")
            work = distributed.all_reduce(asked, distributed.ReduceOp.MAX, group=self._group, async_op=True)
            self._asked = asked, work

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Read the last answer, which comes too late to stop, so that no process is left asking."""
        self._answer()

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        (asked, work), self._asked = self._asked, None
        work.wait()
        return int(asked)


class WatchCallback(TrainerCallback):
    """Logs before every checkpoint and after the last step; stops without a checkpoint if a loss is not finite.

    Before a checkpoint of plain SFT it looks at the weights, as a distilling trainer does by itself.

    Attributes:
        diverged: (step, name) of the first figure that was not finite.
        trainer: The trainer of the run, once there is one.
    """

    def __init__(self) -> None:
        self.diverged: tuple[int, str] | None = None
        self.trainer: Trainer | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Request a log line that covers the steps up to here."""
        if control.should_save or control.should_training_stop or state.global_step >= state.max_steps:
            control.should_log = True
        self._check(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Do the same for checkpoints at the end of an epoch."""
        control.should_save = control.should_save and self.diverged is None
        control.should_log = control.should_log or control.should_save
        self._check(control)

    def _check(self, control: TrainerControl) -> None:
        """Raise DistillError if weights are to be saved that are not finite."""
        if control.should_save and self.trainer is not None and not isinstance(self.trainer, DistillationMixin):
            check_weights(self.trainer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Stop if a loss in the line is not finite."""
        name = not_finite(logs or {})
        if name is not None:
            self.diverged = self.diverged or (state.global_step, name)
            control.should_training_stop, control.should_save = True, False


class SealCallback(TrainerCallback):
    """Writes the checksums of each checkpoint of a trainer that does not do it itself."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        PartialState().wait_for_everyone()
        if args.should_save:
            seal(Path(str(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"))
