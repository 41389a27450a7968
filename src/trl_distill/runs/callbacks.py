"""Early ends of a run: Ctrl-C, with a checkpoint after the running step, and a non-finite loss, without one.

And the checksums of checkpoints that a trainer of TRL's writes.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..trainer.checkpoints import seal
from ..trainer.mixin import DistillationMixin
from ..trainer.saveable import check_weights
from .summary import not_finite

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments


class StopCallback(TrainerCallback):
    """Ends training with a checkpoint after the step in which `requested` was set."""

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop if a stop was requested."""
        if self.requested:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stopping_on_interrupt(callback: StopCallback) -> Iterator[None]:
    """Turn the first Ctrl-C into a request to stop; a second one stops immediately, without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return

    def request(signum: int, frame: FrameType | None) -> None:
        callback.requested = True
        signal.signal(signal.SIGINT, before)
        print(
            "\nStopping after this step, with a checkpoint; interrupt again (Ctrl-C) to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    before = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
