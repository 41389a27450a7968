"""Find complete checkpoints: a kill may interrupt Trainer while it writes one."""

from __future__ import annotations

import json
import os
from pathlib import Path

STATE = "trainer_state.json"  # Trainer writes it last, and removes older checkpoints after that


def last_complete(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest complete checkpoint in a folder; incomplete ones are skipped."""
    numbered = [(p.name.rpartition("-")[2], p) for p in Path(folder).glob("checkpoint-*")]
    found = sorted(((int(number), p) for number, p in numbered if number.isdecimal()), reverse=True)
    return next((p for _, p in found if is_complete(p)), None)


def kept(folder: str | os.PathLike[str] | None) -> str:
    """Return which checkpoint is left in a folder, for an error."""
    last = None if folder is None else last_complete(folder)
    return "nothing was saved before" if last is None else f"the last checkpoint, {last}, is kept"


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
