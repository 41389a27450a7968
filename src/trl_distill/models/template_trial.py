"""Trials of chat templates, which are programs: one that never ends, or fills the memory, is refused before it is used.

jinja2's sandbox lets a template read and write nothing, but bounds neither its time nor its memory: two nested loops
over `range(99999)` take an hour, and `'x' * 10**10` takes 10 GB in one step that Python cannot interrupt. A template is
therefore first rendered in a fork of this process with limits, on short conversations. What it takes for the rows
themselves is bounded in time alone, see `at_most`.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from . import forked_trial

LENGTH = 1_000_000  # characters of a trial

_MEMORY_CODE, _LENGTH_CODE = 3, 4
TEXT = "What is in a name? " * 10
CONVERSATIONS = [
    [{"role": role, "content": TEXT} for role in roles]
    for roles in (["user"], ["system", "user"], ["user", "assistant"], ["user", "assistant", "user", "assistant"])
]


@lru_cache(maxsize=256)
def fault_of(source: str) -> str | None:
    """Return what is wrong with a chat template that goes on or grows without bounds; None for any other.

    What it raises is not wrong here: a template may take other conversations. Without forks there is no trial.
    """
    from transformers.utils.chat_template_utils import render_jinja_template  # before the fork

    code = forked_trial.tried(lambda: _render(source, render_jinja_template))
    if code is None:
        return None
    if forked_trial.is_endless(code):
        return f"does not end within {forked_trial.SECONDS} seconds"
    if code == _LENGTH_CODE:
        return f"makes more than {LENGTH:,} characters of a few words"
    if code == _MEMORY_CODE or code < 0:
        return "takes more memory than a text can need"
    return None


def _render(source: str, render: Callable[..., Any]) -> int:
    """Render a template, and return a code that says how that went."""
    for conversation in CONVERSATIONS:
        with suppress(Exception):
            try:
                texts, _ = render([conversation], chat_template=source, add_generation_prompt=True)
            except MemoryError:
                return _MEMORY_CODE
            if len(texts[0]) > LENGTH:
                return _LENGTH_CODE
    return 0


class TookTooLong(Exception):
    """What `at_most` raises in the thread that takes too long."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in a block of Python code that takes longer; one long step of C is not interrupted."""
    _watch.enter(seconds)
    try:
        yield
    finally:
        _watch.leave()


class _Watch:
    """One thread that looks once a second at how long the others have been in their blocks."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}
        self.lock = threading.Lock()
        self.pid = 0

    def enter(self, seconds: float) -> None:
        if self.pid != os.getpid():  # a fork has no thread but its own
            self.pid, self.ends, self.lock = os.getpid(), {}, threading.Lock()
            threading.Thread(target=self._look, name="chat-template-watch", daemon=True).start()
        self.ends[threading.get_ident()] = time.monotonic() + seconds

    def leave(self) -> None:
        with self.lock:
            self.ends.pop(threading.get_ident(), None)

    def _look(self) -> None:
        while True:
            time.sleep(1)
            with self.lock:
                for thread, end in list(self.ends.items()):
                    if time.monotonic() > end:
                        del self.ends[thread]
                        raised = ctypes.py_object(TookTooLong)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


_watch = _Watch()
