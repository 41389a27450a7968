"""Ctrl-C that loses nothing: the running step ends, a checkpoint is written, then training stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback


class StopCallback(TrainerCallback):
    """Ends training with a checkpoint after the step in which `asked` was set."""

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop where it was asked for."""
        if self.asked:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def asking_to_stop(callback: StopCallback) -> Iterator[None]:
    """Turn the first Ctrl-C into a request to stop; a second one stops at once, without a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return

    def ask(signum: int, frame: Any) -> None:
        callback.asked = True
        signal.signal(signal.SIGINT, before)
        print(
            "\nStopping after this step, with a checkpoint; Ctrl-C again to stop at once.",
            file=sys.stderr,
            flush=True,
        )

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
