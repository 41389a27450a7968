"""A small JSON file of ours, which another program, or a kill, may have damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if it cannot be read, or holds something else."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last is nested without end
        return None
    return read if isinstance(read, dict) else None
