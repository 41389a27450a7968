"""Standard output and standard error that never end a run: a closed pipe, a full disk, a terminal without UTF-8."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # nobody reads any more: `| head`, a terminal that was closed


class _Unbreakable(io.FileIO):
    """A file descriptor whose bytes are dropped if they cannot be written."""

    def write(self, data: object) -> int:
        """Write what can be written."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in GONE:
                with open(os.devnull, "wb") as nowhere:  # for what is written by other means, and by child processes
                    os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(data).nbytes  # type: ignore[arg-type]


@contextmanager
def unbreakable_streams() -> Iterator[None]:
    """Replace this process's standard streams by ones that drop what cannot be written or encoded.

    Streams that something has replaced already (a notebook, a test) stay as they are.
    """
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stack.enter_context(_replaced(name))
        yield


@contextmanager
def _replaced(name: str) -> Iterator[None]:
    before: TextIO | None = getattr(sys, name)
    if before is None:  # closed by the shell (>&-)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            setattr(sys, name, nowhere)
            try:
                yield
            finally:
                setattr(sys, name, None)
        return
    if before is not getattr(sys, f"__{name}__") or not isinstance(before, io.TextIOWrapper):
        yield
        return
    with suppress(OSError):
        before.flush()
    raw = _Unbreakable(before.fileno(), "wb", closefd=False)
    stream = io.TextIOWrapper(
        raw if before.write_through else io.BufferedWriter(raw),
        encoding=before.encoding,
        errors="backslashreplace",
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )
    setattr(sys, name, stream)
    try:
        yield
    finally:
        stream.flush()
        if getattr(sys, name) is stream:
            setattr(sys, name, before)
