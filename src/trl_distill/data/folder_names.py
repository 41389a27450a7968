"""Names of files that a manifest gives: only those of files inside its folder are used."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import TypeGuard


def is_inside(name: object) -> TypeGuard[str]:
    """Whether a name in a manifest is relative and leads to a file below its folder, on any platform."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    path = PureWindowsPath(name)  # which knows slashes, backslashes and drives
    return bool(path.parts) and not path.anchor and ".." not in path.parts


def file_in(folder: Path, name: object) -> Path:
    """Return a file of a folder by its name in a manifest; the folder itself may be a link.

    Raises:
        ValueError: The name leads out of the folder, or through a link, or to a pipe, a device or a folder; the text
            begins with the name.
    """
    if not is_inside(name):
        raise ValueError(f"{name!r:.100} is not the name of a file inside the folder")
    if link_to(folder, name) is not None:
        raise ValueError(f"{name!r} is a link, or in a linked folder")
    path = folder / name
    if path.exists() and not path.is_file():
        raise ValueError(f"{name!r} is no file")  # reading a pipe would wait
    return path


def link_to(folder: Path, name: str) -> Path | None:
    """Return the first link on the way from a folder to a file inside it; None if there is none."""
    path = folder
    for part in PureWindowsPath(name).parts:
        path /= part
        if path.is_symlink():
            return path
    return None
