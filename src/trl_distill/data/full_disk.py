"""Disks: how much is free, and how a full one shows itself in the errors of Python, safetensors, torch and Arrow."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from .atomic_file import existing

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not get larger (ulimit -f, or the file system)",
}
# safetensors gives Rust's text with the number alone; torch gives neither
TEXTS = {f"(os error {number})": reason for number, reason in REASONS.items()}
OF_TORCH = ("PytorchStreamWriter failed", "inline_container.cc")
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def why_not_written(error: BaseException | None) -> str | None:
    """Say why a file could not be written, if an error, or one that led to it, comes from a full disk; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REASONS:
            return REASONS[error.errno]
        text = str(error)
        for number, reason in TEXTS.items():
            if number in text:
                return reason
        if isinstance(error, RuntimeError) and "unexpected pos" in text and any(word in text for word in OF_TORCH):
            return REASONS[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None


def file_not_written(error: BaseException | None) -> Path | None:
    """Return the file that an error of the system, or one that led to it, names; None if it names none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in REASONS and error.filename is not None:
            return Path(str(error.filename2 or error.filename))  # a copy's error names what was read first
        error = error.__cause__ or error.__context__
    return None


def free_bytes(folder: Path) -> int:
    """Return what is free for this user on the disk of a folder, there or not."""
    return shutil.disk_usage(existing(folder)).free


def size_text(count: float) -> str:
    """Return a number of bytes as a reader has it, such as "1.3 GB" (10**9 bytes)."""
    unit = 0
    while count >= 999.5 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.{0 if unit == 0 or count >= 9.95 else 1}f} {UNITS[unit]}"
