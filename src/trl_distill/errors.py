"""The errors a user can meet, and the exit code each one ends the command with.

Every member also inherits the standard exception that a Python caller would expect, so `except ValueError`
keeps working. A message is one sentence that names what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from .printable import printable

__all__ = [
    "DataError",
    "DistillError",
    "ModelError",
    "ParamsError",
    "ProjectError",
    "RunInterrupted",
    "TeacherError",
    "TemplateError",
    "UsageError",
    "nearest",
]


class DistillError(Exception):
    """Root of the tree; a failure while running (exit 1).

    A message may quote data, files and servers: `str` writes their control characters out.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(DistillError, ValueError):
    """Something the user typed or passed cannot be used (exit 2); raised before a model loads."""

    exit_code = 2


class ParamsError(UsageError, TypeError):
    """An unknown field, a value outside what is accepted, or two settings that contradict each other."""


class TemplateError(UsageError):
    """A prompt template with an unknown field or without `{input}`, or a file of one that cannot be read."""


class DataError(UsageError):
    """Data that cannot be found or read, or that holds more unusable rows than allowed."""


class ModelError(UsageError):
    """A student model that cannot be found or used."""


class TeacherError(UsageError):
    """A teacher that cannot be found or used with this student."""


class ProjectError(UsageError, FileExistsError):
    """A project folder that holds work which this run would overwrite."""


class RunInterrupted(DistillError):
    """The run was stopped on request after writing a checkpoint (exit 130, as shells report Ctrl-C)."""

    exit_code = 130


def model_error(role: str) -> type[UsageError]:
    """Return the error of a model by the setting that named it: a teacher's for "teacher_model"."""
    return TeacherError if role == "teacher_model" else ModelError


def there_are(names: Sequence[str]) -> str:
    """Return "there are 'a', 'b'", as an error lists the names that would work."""
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(map(repr, names)) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
