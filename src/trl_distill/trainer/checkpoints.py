"""Which checkpoints are complete: Trainer writes each in its place, and a kill may come in between."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..data.data_fingerprint import difference
from ..errors import ParamsError

ROWS = "rows.txt"  # which rows were learned from
STATE = "trainer_state.json"  # Trainer writes it last, and removes older checkpoints after that


def last_complete(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest complete checkpoint in a folder; those that a kill tore are passed over."""
    numbered = [(p.name.rpartition("-")[2], p) for p in Path(folder).glob("checkpoint-*")]
    found = sorted(((int(number), p) for number, p in numbered if number.isdecimal()), reverse=True)
    return next((p for _, p in found if is_complete(p)), None)


def to_resume_from(folder: str | os.PathLike[str]) -> Path:
    """Return the newest complete checkpoint in a folder.

    Raises:
        ParamsError: There is none.
    """
    found = last_complete(folder)
    if found is None:
        raise ParamsError(
            f"resume_from_checkpoint is True, but output_dir {str(folder)!r} holds no complete checkpoint; leave it "
            "out to start over."
        )
    return found


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def keep_rows(checkpoint: Path, rows: str) -> None:
    """Write down which rows a checkpoint has learned from."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / ROWS).write_text(rows, encoding="utf-8")


def check_rows(checkpoint: str | os.PathLike[str], rows: str, numbers: Sequence[int]) -> None:
    """Refuse to resume from a checkpoint on other rows; one without a record of its rows is accepted.

    Raises:
        ParamsError: Naming what changed.
    """
    try:
        before = Path(checkpoint, ROWS).read_text(encoding="utf-8")
    except OSError:
        return
    changed = difference(before, rows, numbers)
    if changed is not None:
        raise ParamsError(
            f"resume_from_checkpoint is {str(checkpoint)!r}, but train_dataset has changed since: {changed}; give the "
            "same rows, or leave it out to start over."
        )


def mark_incomplete(checkpoint: Path) -> None:
    """Mark a checkpoint that is about to be written over as incomplete, until it is written."""
    (checkpoint / STATE).unlink(missing_ok=True)
