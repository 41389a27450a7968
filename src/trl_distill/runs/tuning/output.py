"""What a search prints: what its trials print goes to files, and a few lines of it to the terminal."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

from ...errors import printable

WARNING = "  warning "  # how a run's warnings begin


class TrialOutput(io.TextIOBase):
    """Standard output of a trial, written to a file; warnings are shown on the terminal too, each once in a search.

    Attributes:
        terminal: The stream that it takes the place of.
    """

    def __init__(self, *, verbose: bool) -> None:
        super().__init__()
        self.terminal: TextIO = sys.stdout
        self.verbose = verbose
        self._file: TextIO | None = None
        self._line = ""
        self._warned: set[str] = set()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in the base class
        return "utf-8"

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._file is None:  # a handler or a thread of the trial has kept this stream
            return self.terminal.write(text)
        self._file.write(text)
        if self.verbose:
            self.terminal.write(text)
            return len(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith(WARNING) and line not in self._warned:
                self._warned.add(line)
                self.say(line)
        return len(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()
        self.terminal.flush()

    def say(self, text: str) -> None:
        """Print a line on the terminal."""
        self.terminal.write(printable(text) + "\n")
        self.terminal.flush()

    @contextmanager
    def written_to(self, path: Path) -> Iterator[None]:
        """Write to the end of a file what is printed inside."""
        self.terminal, self._line = sys.stdout, ""
        with path.open("a", encoding="utf-8", errors="backslashreplace") as self._file:
            try:
                with redirect_stdout(self):
                    yield
            finally:
                self._file = None
