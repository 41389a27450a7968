"""A form in which a student is handed over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...config.export_settings import ExportSettings
    from .student import TrainedStudent
    from .verify import Runtime


class Form(ABC):
    """A form in which a student is handed over.

    Args:
        student: The student.
        settings: How it is exported.

    Attributes:
        runtime: What runs it.
        dtype: Precision of its weights.
    """

    runtime: str

    def __init__(self, student: TrainedStudent, settings: ExportSettings) -> None:
        self.student, self.settings, self.dtype = student, settings, student.dtype

    @abstractmethod
    def check(self) -> list[str]:
        """Refuse what cannot be done, before a model loads, and return lines that the user should read."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the form into an empty folder."""

    def finish(self, folder: Path) -> None:  # noqa: B027 - most forms have nothing left to do
        """Do what needs the finished folder."""

    @abstractmethod
    def next_command(self, folder: Path) -> str:
        """Return the command that a user runs next."""

    def why_not_run(self) -> str | None:
        """Return why it cannot be run here; None if it can, as if what wrote it runs it too."""
        return None

    @abstractmethod
    def running(self, folder: Path, length: int) -> AbstractContextManager[Runtime]:
        """Return its runner, for sequences of at most `length` tokens."""
