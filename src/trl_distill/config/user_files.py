"""Paths and small text files that a user names, with one sentence for those that cannot be used.

A pipe is refused because it can be read once and files are read several times, a device because it may have no end.
Standard library only.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from ..errors import ParamsError, UsageError, quoted

MOST_BYTES = 64 * 1024 * 1024  # of a prompt, a template or a file of settings
LONGEST_NAME = 255  # bytes, on all common file systems
LONGEST_PATH = 4095


def user_path(given: str | os.PathLike[str], *, name: str, error: type[UsageError] = ParamsError) -> Path:
    """Return a path with `~` as the home folder.

    Args:
        given: The path as it was typed.
        name: The setting in messages.
        error: The error to raise.

    Raises:
        UsageError: No file can have this name: it is too long or has a zero byte, or there is no such home folder.
    """
    text = os.fspath(given)
    try:
        path = Path(text).expanduser()
        parts = [os.fsencode(part) for part in path.parts]
    except RuntimeError:
        raise error(
            f"{name} {quoted(text)} begins with the home folder of a user that this machine does not have; write the "
            "path out."
        ) from None
    except UnicodeEncodeError:
        raise error(f"{name} {quoted(text)} has characters that no file name has; give another.") from None
    if "\0" in text:
        raise error(f"{name} {quoted(text)} has a zero byte, which no file name has; give another.")
    if max(map(len, parts), default=0) > LONGEST_NAME or sum(map(len, parts)) + len(parts) > LONGEST_PATH:
        raise error(
            f"{name} {quoted(text)} is too long for a path (a name has at most {LONGEST_NAME} bytes); give another."
        )
    return path


def shell_path(path: str | os.PathLike[str]) -> str:
    """Return a path as it is typed in a shell: quoted if need be, and never read as a flag."""
    text = os.fspath(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def is_same_file(before: object, now: object) -> bool:
    """Whether two values are paths of the same file or folder, one of them relative for example."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return False
    try:
        return Path(before).expanduser().samefile(Path(now).expanduser())
    except (OSError, ValueError, RuntimeError):  # not there, or no path at all
        return False


def check_ordinary(path: Path, *, name: str, error: type[UsageError]) -> None:
    """Refuse a pipe, a device or a socket, which `open` may wait for or read without end; all else passes.

    Raises:
        UsageError: Naming what it is.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # opening it will say why
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise error(f"{name} is {kind}, not a file, and is read more than once; save its content to a file and give that.")


def read_small_text(path: Path, *, encoding: str = "utf-8") -> str:
    """Return the text of a file that is no longer than anybody writes by hand.

    Raises:
        OSError: It cannot be read, is no ordinary file, or has more than `MOST_BYTES`; `strerror` says why.
        UnicodeDecodeError: It is not UTF-8.
    """
    mode, size = path.stat().st_mode, path.stat().st_size
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(0, "it is a pipe or a device, not a file")
    if size > MOST_BYTES:
        raise OSError(0, f"it has {size:,} bytes, more than {MOST_BYTES:,}")
    return path.read_text(encoding=encoding)
