"""Signals that ask a process to end: Ctrl-C, SIGTERM (Slurm, Kubernetes, systemd) and SIGHUP (a closed terminal).

The command owns its process and handles them from its first line to its last. `train()` runs in the process of somebody
else: it handles them while it trains, and only those that would end the process anyway.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from ..data.folder_lock import is_main_rank, processes
from ..errors import printable

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
NUMBERS = tuple(int(getattr(signal, name)) for name in NAMES if hasattr(signal, name))
# a launcher gets a signal of the terminal or of Slurm like its processes, and passes it on to them
PASSED_ON = 5.0  # seconds
AGAIN = 0.05  # seconds until a signal whose exception was dropped is sent again


class Stopped(KeyboardInterrupt):
    """A signal ends what runs now, as Ctrl-C does.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopSignals:
    """What the signals do: the first one is a request if something listens, else it raises; the last one exits.

    Attributes:
        listener: Called with the number of the first signal.
    """

    def __init__(self) -> None:
        self.listener: Callable[[int], None] | None = None
        self._seen = 0.0
        self._raised = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            Stopped: Nothing listens, or it is the second one.
        """
        now = time.monotonic()
        if self._seen and is_launched() and now - self._seen < PASSED_ON:
            return
        self._seen = now
        listener, self.listener = self.listener, None
        if listener is not None:
            listener(number)
        elif self._raised:
            os._exit(exit_code_of(number))
        else:
            self._raised = True
            raise Stopped(number)

    @contextmanager
    def sent_again(self) -> Iterator[None]:
        """Send a signal again if the interpreter drops what it raised, as it does around a fork and in `__del__`."""
        process, before = os.getpid(), sys.unraisablehook

        def look_at(dropped: sys.UnraisableHookArgs) -> None:
            if not isinstance(dropped.exc_value, Stopped):
                before(dropped)
            elif os.getpid() == process:  # not in a fork, which does not outlive this process
                self._raised, self._seen = False, 0.0
                timer = threading.Timer(AGAIN, os.kill, (process, dropped.exc_value.number))
                timer.daemon = True
                timer.start()

        sys.unraisablehook = look_at
        try:
            yield
        finally:
            sys.unraisablehook = before


_of_command: list[StopSignals] = []  # the handler of the command that runs in this process


def exit_code_of(number: int) -> int:
    """Return the exit code that shells report for a process that a signal has ended."""
    return 128 + number


def is_launched() -> bool:
    """Whether torchrun, `accelerate launch` or another launcher has started this process among others."""
    return "TORCHELASTIC_RUN_ID" in os.environ or processes() > 1


@contextmanager
def handling_signals() -> Iterator[StopSignals]:
    """Handle the signals of the whole process; one that is ignored (nohup) or handled already stays as it is."""
    signals = StopSignals()
    with signals.sent_again(), _handled(signals):
        _of_command.append(signals)
        try:
            yield signals
        finally:
            _of_command.pop()


@contextmanager
def listening_for_stop(requested: Callable[[int], None]) -> Iterator[None]:
    """Turn the first signal into a call; the second one raises.

    Args:
        requested: Called with the signal's number, between two bytecodes of the main thread.
    """
    if _of_command:
        _of_command[-1].listener = requested
        try:
            yield
        finally:
            _of_command[-1].listener = None
        return
    signals = StopSignals()
    signals.listener = requested
    with _handled(signals):
        yield


@contextmanager
def _handled(signals: StopSignals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = {number: signal.getsignal(number) for number in _unhandled(NUMBERS)}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unhandled(numbers: Sequence[int]) -> list[int]:
    """Return the signals that do what they do by default."""
    return [number for number in numbers if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)]


def say_stopping(number: int) -> None:
    """Say that the run ends after its step, and how to end it at once; called while a signal is handled."""
    if not is_main_rank():
        return
    again = "interrupt again (Ctrl-C)" if number == signal.SIGINT else "send the signal again"
    text = f"\nStopping after this step, with a checkpoint; {again} to stop at once."
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except RuntimeError:  # the signal came while a line was written there, which no other may interrupt
        with suppress(OSError):
            os.write(2, f"{text}\n".encode())
