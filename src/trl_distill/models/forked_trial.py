"""Work on strangers' input that may never end or fill the memory, tried in a fork of this process with limits."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

SECONDS = 5  # of the CPU, for a trial that takes some milliseconds
MEMORY = 512 * 1024**2  # bytes, in addition to those of this process
GIVE_UP = 60  # seconds after which a fork that does not use the CPU is given up, for instance on a full machine


def tried(work: Callable[[], int]) -> int | None:
    """Do something in a fork with limits and return its exit code, the negative number of a signal that ended it.

    None is that of no trial: this process cannot fork, which takes memory in some systems, or the fork was given up.

    Args:
        work: Uses the CPU alone; returns the exit code.
    """
    if not hasattr(os, "fork"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12's of threads, which the fork does not use
        try:
            child = os.fork()
        except OSError:
            return None
    if not child:
        _do(work)
    end = time.monotonic() + GIVE_UP
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def is_endless(code: int | None) -> bool:
    """Whether an exit code of `tried` is that of what takes more time than it may."""
    return code in (-signal.SIGXCPU, -signal.SIGKILL)


def _do(work: Callable[[], int]) -> NoReturn:
    """Do something in a fork, and end it with the code that this returns."""
    import resource

    code = 0
    try:
        with suppress(OSError, ValueError, IndexError):
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = work()
    finally:
        os._exit(code)
