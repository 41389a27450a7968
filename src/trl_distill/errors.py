"""The errors a user can meet, and the exit code each one ends the command with.

Every member also inherits the standard exception that a Python caller would expect, so `except ValueError`
keeps working. A message is one sentence that names what is wrong, where, and what to do.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice

__all__ = [
    "DataError",
    "DistillError",
    "ModelError",
    "OutOfMemory",
    "ParamsError",
    "ProjectError",
    "RunInterrupted",
    "TeacherError",
    "TemplateError",
    "UsageError",
    "nearest",
]

LONGEST = 480  # characters of a message, which the command puts its name before
REASON = 300  # characters of another error that it quotes
END = 160  # characters of its end that stay, which say what to do
NAMES = 10  # names that a message lists
COMPARED = 10_000  # names among which the nearest is looked for

# What a terminal obeys instead of showing it: escape sequences move the cursor and hide the rest of a line, marks of
# direction reverse what follows (https://www.trojansource.codes). C0, DEL, C1, soft hyphen, directional marks, zero
# width, line separators, embeddings, isolates, byte-order mark, tags, and surrogates, which no file in UTF-8 can hold.
# Not the joiners U+200C and U+200D, which emoji and Persian need.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
# Access tokens, of which lower-case letters and underscores alone are a name, such as hf_deepspeed_config; and what a
# URL has before its host, also if a path has made one slash of two
SECRET = re.compile(r"\b(hf_(?=[\w-]*[A-Z0-9])|sk-)[\w-]{10,}|(?<=\w:/)(/?)[^/\s@]+(?=@)")


class DistillError(Exception):
    """Root of the tree; a failure while running (exit 1).

    A message may quote settings, data, files and servers: `str` leaves out secrets, writes control characters out, and
    leaves out the middle of what is longer than `LONGEST`.
    """

    exit_code = 1

    def __str__(self) -> str:
        return shortened(printable(without_secrets(super().__str__())))


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


class OutOfMemory(DistillError, MemoryError):
    """Memory ran out, on a device or in this machine; names settings that need less (exit 1)."""


class RunInterrupted(DistillError):
    """The run was stopped on request after writing a checkpoint.

    Args:
        sentence: What was kept, and how to continue.
        exit_code: What shells report for the signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    exit_code = 130

    def __init__(self, sentence: str, *, exit_code: int = 130) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def printable(text: str) -> str:
    r"""Return a text whose control characters are written out, so that a terminal shows them and obeys none.

    They are written as in Python: `\x1b`, `\u202e`. Newlines and tabs stay; a carriage return does not, since it
    overwrites the line. Doing it twice changes nothing.

    Args:
        text: Any text; what a program adds itself, such as colours, has to come after.
    """
    return HIDDEN.sub(lambda found: found[0] if found[0] in "\n\t" else repr(found[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """Return a text with whatever looks like an access token cut to its prefix, and URLs without user and password."""
    return SECRET.sub(lambda found: f"{found[1] or found[2] or ''}***", text)


def model_error(role: str) -> type[UsageError]:
    """Return the error of a model by the setting that named it: a teacher's for "teacher_model"."""
    return TeacherError if role == "teacher_model" else ModelError


def shortened(text: str) -> str:
    """Return a message of at most `LONGEST` characters: its start says what and where, its end what to do."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - END - 3]} … {text[-END:]}"


class _Short(reprlib.Repr):
    """How a message quotes a value: as `repr` does, but of bounded length, whatever the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 100
        self.maxlong = 40

    def repr_int(self, x: int, level: int) -> str:
        """Describe a number that Python writes no digits of."""
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"a number of {x.bit_length():,} bits"


_SHORT = _Short()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without its full stop; the error's class if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:REASON].rstrip(".")


def quoted(value: object) -> str:
    """Return a value that a user gave as a message shows it."""
    return _SHORT.repr(value)


def counted(number: int, noun: str) -> str:
    """Return "1 row" or "1,234 rows", of a noun whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def there_are(names: Sequence[str]) -> str:
    """Return "there are 'a', 'b'", as an error lists the names that would work."""
    listed = ", ".join(map(quoted, names[:NAMES])) or "none"
    more = f" and {len(names) - NAMES:,} more" if len(names) > NAMES else ""
    return f"there {'is' if len(names) == 1 else 'are'} {listed}{more}"


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names closest to `name`, the closest first; none if all are different."""
    near = [other for other in islice(known, COMPARED) if len(other) <= END and len(name) <= END]
    return difflib.get_close_matches(name, near, n=3, cutoff=0.6)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known names closest to `name`, or an empty string."""
    close = near_names(name, known)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
