"""Watches a run: no step goes unlogged, and a loss that is no number ends it instead of being saved."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from .summary import not_finite


class WatchCallback(TrainerCallback):
    """Logs before every checkpoint and after the last step; stops without a checkpoint when a loss is not finite.

    Attributes:
        diverged: (step, name) of the first figure that was no finite number.
    """

    def __init__(self) -> None:
        self.diverged: tuple[int, str] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have a line written that covers the steps up to here."""
        if control.should_save or control.should_training_stop or state.global_step >= state.max_steps:
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise, for checkpoints at the end of an epoch."""
        control.should_save = control.should_save and self.diverged is None
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the line."""
        name = not_finite(logs or {})
        if name is not None:
            self.diverged = self.diverged or (state.global_step, name)
            control.should_training_stop, control.should_save = True, False
