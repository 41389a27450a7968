"""Atomic file writes, with the permissions of ordinary files, and what prevents them."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

UNFINISHED = ".writing"  # how temporary names end


def make_readable(folder: Path) -> None:
    """Give weights in a folder the permissions of any new file: safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.glob("*.safetensors"):
        path.chmod(path.stat().st_mode | (0o666 & ~umask))


def obstacle(folder: Path) -> Path | None:
    """Return the path that keeps a folder from being made or written: a file, or a folder without the permission."""
    above = existing(folder)
    return None if above.is_dir() and os.access(above, os.W_OK) else above


def existing(folder: Path) -> Path:
    """Return a folder, or what is there of its path."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new empty file to be written, which is flushed to the disk and renamed at the end.

    After an error it is deleted instead. A link is replaced, never written through.
    """
    temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}{UNFINISHED}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # never through a link
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    try:
        with naming(path):
            yield temporary
        if temporary.stat().st_mode != mode:  # safetensors writes another file in its place, for its owner alone
            temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    flush(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a file so that it is complete or not there, even after a power cut."""
    write_bytes(path, text.encode())
    return path


def write_bytes(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file so that it is complete or not there, even after a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content so that the copy is complete or not there, even after a power cut."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def append(path: Path, data: bytes, *, flushed: bool = True) -> None:
    """Append to a file, all of it or nothing.

    A link is replaced first, and so is one of several names of a file: a backup of hard links stays as it is.

    Args:
        path: The file.
        data: What is appended.
        flushed: Whether to wait until it is on the disk, which takes milliseconds, or much more in a network.

    Raises:
        OSError: It names the file.
    """
    with suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            _separate(path)
    with naming(path), path.open("ab", buffering=0) as file:
        size, left = file.seek(0, os.SEEK_END), memoryview(data)
        try:
            while left:  # a disk that fills takes a part first
                left = left[file.write(left) :]
            if flushed:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def _separate(path: Path) -> None:
    """Replace a name of a file by a copy, so that what is written there changes no other name; a pipe has no copy."""
    with replacing(path) as temporary:
        if path.is_file():
            shutil.copyfile(path, temporary)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system say which file was written; that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def flush(path: Path) -> None:
    """Flush a file to the disk, or the names in a folder if the platform can."""
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # a copy may be read-only
    except OSError:
        if is_folder:  # Windows opens none
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError:
        if not is_folder:  # some network file systems flush no folders
            raise
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """Flush all files below a folder to the disk, and their names."""
    for path in (*folder.rglob("*"), folder):
        if not path.is_symlink():
            flush(path)


def discard_unfinished(folder: Path, *, of: Path | None = None) -> None:
    """Delete the temporary files that a killed process has left in a folder in which nobody writes.

    Args:
        folder: The folder.
        of: The only file that nobody writes, if others in the folder may be written.
    """
    name = "*" if of is None else escape(of.name[:50])
    for path in folder.glob(f".{name}.{'[0-9a-f]' * 8}{UNFINISHED}"):
        if path.is_file() and not path.is_symlink():
            path.unlink()


def remove(path: Path) -> None:
    """Delete a file, a folder with all it holds, or a link but not what it points to; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fresh_folder(path: Path) -> Path:
    """Make an empty folder in the place of anything that is there."""
    remove(path)
    path.mkdir(parents=True)
    return path
