"""A file of JSON lines found by key: what came is appended and flushed at once, a line torn by a kill is ignored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class LineStore:
    """Entries by key, kept in memory and appended to a file.

    Args:
        path: JSON-lines file, made when the first entry is added; None keeps nothing on disk.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, dict[str, Any]] = {}
        self._size, self._torn = 0, False
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def refresh(self) -> None:
        """Read what another process has added since."""
        if self.path is None or not self.path.is_file() or self.path.stat().st_size == self._size:
            return
        content = self.path.read_bytes()
        self._size, self._torn = len(content), not content.endswith(b"\n")
        for line in content.split(b"\n"):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: it is asked again

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Keep an entry and write it to the file before returning."""
        self._known[key] = {"key": key, **entry}
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = (b"\n" if self._torn else b"") + json.dumps(self._known[key]).encode() + b"\n"
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._size, self._torn = self._size + len(data), False
