"""The JSON lines of a file that grows while a run trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file, none if it does not exist; one that a kill has cut, or without a step, is left out."""
    for text in path.read_bytes().split(b"\n") if path.is_file() else ():
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                yield line
