"""Locks: one run at a time writes into a folder or a store.

A lock is `flock` on a file (`.lock` in a folder, `.NAME.lock` beside a file) that says which process holds it. The
kernel releases it when that process ends, however it ends, so what a killed run has left is no obstacle. A thread may
lock again what it holds, and forks of a process hold nothing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..config.setting_names import name_settings
from ..errors import ProjectError, printable
from .atomic_file import discard_unfinished

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
LONGEST = 500  # bytes of a lock file that are read
TRIES = 100
# where accelerate looks: torchrun and `accelerate launch` set the first, launchers of MPI the others
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
Key = tuple[int, int, str]  # device and number of the folder, whatever its path, and the name of the lock file


@dataclass
class _Held:
    """A lock of this process: its open file, None if there are no locks here; who holds it, and how many times."""

    descriptor: int | None
    thread: int
    times: int = 1


_held: dict[Key, _Held] = {}
_changing = threading.Lock()


class _InUse(Exception):
    """Who holds a lock, in words."""


@contextmanager
def folder_lock(folder: Path, *, what: str, instead: str, file: str = LOCK) -> Iterator[None]:
    """Hold a folder; one that is missing is made, and deleted at the end if it is still empty.

    Only the main process of a launch holds it. Where there are no locks, a warning is printed.

    Args:
        folder: The folder; a link to one is followed.
        what: What it is, at the beginning of an error.
        instead: What to give if it is in use, at its end.
        file: Name of the lock file in the folder.

    Raises:
        ProjectError: Another process holds it, or the lock file cannot be written.
    """
    with _lock(folder / file, what, instead) as is_first:
        if is_first:
            discard_unfinished(folder)
        yield


@contextmanager
def file_lock(path: Path, *, what: str, instead: str) -> Iterator[None]:
    """Hold a file, or a folder that is replaced as a whole, by a lock file beside it; see `folder_lock`."""
    path = path.resolve()
    with _lock(path.with_name(f".{path.name[:50]}{LOCK}"), what, instead):
        yield


def is_main_rank() -> bool:
    """Whether this process is the only one of its run, or the first of those that a launcher has started."""
    return next((os.environ[name] for name in RANKS if os.environ.get(name)), "0") == "0"


def processes() -> int:
    """Return how many processes a launcher has started for this run; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def _lock(file: Path, what: str, instead: str) -> Iterator[bool]:
    """Hold a lock file; yield whether this process alone uses what it protects."""
    if not is_main_rank():
        yield False
        return
    made: list[Path] = []
    try:
        key, why_not = _acquired(file, made)
    except _InUse as use:
        raise ProjectError(f"{what} is in use by {use}; wait until it ends, or give {instead}.") from None
    except OSError as error:
        _delete_empty(made)
        reason = "is a link" if file.is_symlink() else error.strerror
        raise ProjectError(f"{what} cannot be locked: {str(file)!r}: {reason}; give {instead}.") from error
    if why_not:
        print(
            printable(name_settings(f"Warning: {what} is not protected from a second run: {why_not}; start only one."))
        )
    try:
        yield _held[key].times == 1 and not why_not
    finally:
        _release(key, file)
        _delete_empty(made)


def _acquired(file: Path, made: list[Path]) -> tuple[Key, str]:
    """Take a lock, or take it again; return its key, and why there is none.

    Folders that are created are added to `made`.
    """
    for _ in range(TRIES):
        _create(file.parent, made)
        with suppress(FileNotFoundError), _changing:  # a run that has ended deletes its lock file and an empty folder
            folder = file.parent.stat()
            key = (folder.st_dev, folder.st_ino, file.name)
            held = _held.get(key)
            if held is None:
                descriptor, why_not = _locked(file)
                _held[key] = _Held(descriptor, threading.get_ident())
                return key, why_not
            if held.thread != threading.get_ident():
                raise _InUse("another thread of this process")
            held.times += 1
            return key, ""
    raise FileNotFoundError(errno.ENOENT, "its folder is deleted again and again")


def _locked(file: Path) -> tuple[int | None, str]:
    """Return the open lock file, or why there are no locks here."""
    if fcntl is None:
        return None, "this platform has no flock"
    while True:
        descriptor = _opened(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            use = _InUse(_holder(descriptor))
            os.close(descriptor)
            raise use from None
        except OSError as error:  # a network file system without locks
            os.close(descriptor)
            return None, f"its file system has no locks ({error.strerror})"
        if _is_at(file, descriptor):
            if os.fstat(descriptor).st_nlink == 1:
                return descriptor, _write_holder(descriptor)
            file.unlink()  # a hard link, whose other name may be anybody's file
        os.close(descriptor)  # deleted, here or by the process that has just released it


def _opened(file: Path) -> int:
    """Open a lock file, never through a link."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags, 0o666)
    except PermissionError:  # another user's: it can be locked, but not written
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    return descriptor


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_holder(descriptor: int) -> str:
    """Write who holds the lock; return why it may protect nothing, if another machine's process had it before."""
    before = _read_holder(descriptor)
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M}"}
    with suppress(OSError):  # a full disk, or another user's file: the lock holds without it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    if before is None or before[1] == socket.gethostname():
        return ""
    return f"{_words(before)} has not released it, and a network file system may not share its locks"


def _read_holder(descriptor: int) -> tuple[int, str, str] | None:
    """Return process, host and time of a lock file; None if it has no such content."""
    try:
        read = json.loads(os.pread(descriptor, LONGEST, 0))
        pid, host, since = int(read["pid"]), str(read["host"]), str(read["since"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (pid, host, since) if (host + since).isprintable() else None


def _holder(descriptor: int) -> str:
    holder = _read_holder(descriptor)
    return "another process" if holder is None else _words(holder)


def _words(holder: tuple[int, str, str]) -> str:
    pid, host, since = holder
    where = f"on this machine ({host})" if host == socket.gethostname() else f"on {host}"
    return f"process {pid} {where} since {since}"


def _release(key: Key, file: Path) -> None:
    with _changing:
        held = _held.get(key)
        if held is None:  # this is a fork
            return
        held.times -= 1
        if held.times:
            return
        del _held[key]
        if held.descriptor is None:
            return
        with suppress(OSError):
            if _is_at(file, held.descriptor):
                file.unlink()  # before it is released: a process that locks it then sees that it is gone
        os.close(held.descriptor)


def _create(folder: Path, made: list[Path]) -> None:
    """Create a folder and those above it, and add them to `made`."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir()
            made.append(path)
        except FileExistsError:
            if not path.is_dir():
                raise


def _delete_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        with suppress(OSError):
            path.rmdir()


def _forget() -> None:
    """Close the locks of the process that this one is a fork of, so that they end with that process."""
    global _changing
    _changing = threading.Lock()
    for held in _held.values():
        if held.descriptor is not None:
            os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
