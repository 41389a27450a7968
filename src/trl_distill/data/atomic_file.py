"""Atomic file writes, with the permissions of ordinary files, and what prevents them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


def make_readable(folder: Path) -> None:
    """Give weights in a folder the permissions of any new file: safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.glob("*.safetensors"):
        path.chmod(path.stat().st_mode | (0o666 & ~umask))


def obstacle(folder: Path) -> Path | None:
    """Return the path that keeps a folder from being made or written: a file, or a folder without the permission."""
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return None if above.is_dir() and os.access(above, os.W_OK) else above


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name for a file to be written under, which is renamed at the end unless there is an error."""
    temporary = path.with_name(f".{path.name}.writing")
    yield temporary
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> Path:
    """Write a file under a temporary name and rename it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_bytes(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file so that it is complete or not there, even after a power cut."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
