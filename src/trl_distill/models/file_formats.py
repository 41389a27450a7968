"""Whether files are whole, as far as their formats show it: JSON, safetensors, and what `torch.save` writes."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

ZIPPED = (".pt", ".pth", ".bin")  # zip archives with a CRC-32 of each part
PICKLE = b"\x80"  # how files of torch before 1.6 begin


def damaged_file(folder: Path) -> str | None:
    """Return the name of the first file of a folder that is malformed; None if there is none, or no folder."""
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    return next((path.name for path in files if is_malformed(path)), None)


def is_malformed(path: Path) -> bool:
    """Whether a file is cut, or has an error that its format shows; files of other formats never have.

    `training_args.bin` counts as one of another format, since no model is read from it.
    """
    if path.suffix == ".json":
        return not is_json(path)
    if path.suffix == ".safetensors":
        return not _is_safetensors(path)
    return path.suffix in ZIPPED and path.name != "training_args.bin" and not _is_archive(path)


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return True
    except (OSError, SafetensorError):
        return False


def _is_archive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(1) == PICKLE:
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        return False
