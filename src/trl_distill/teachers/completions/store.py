"""Completions already paid for: one line of JSON each, found by content, safe to kill.

A key is made from the teacher, the prompt (token ids, or messages) and the generation settings, never from a row
number. A line is appended and flushed as soon as its batch is written; a line torn by a kill is ignored and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...models.generation import Completion


class CompletionStore:
    """Completions by key, kept in memory and appended to a file.

    Args:
        path: JSON-lines file, made when the first completion is added; None keeps nothing on disk.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._known: dict[str, Completion] = {}
        self._torn = False
        if self.path is not None and self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            self._torn = bool(text) and not text.endswith("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = from_plain(entry)
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill: it is made again

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Completion:
        return self._known[key]

    def add(self, entries: Mapping[str, Completion]) -> None:
        """Keep completions and write them to the file before returning."""
        self._known.update(entries)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"key": key, **plain(completion)}) for key, completion in entries.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False

    def settle(self) -> None:
        """Rewrite the file in the order of its keys, without torn lines: what it holds then tells nothing of kills."""
        if self.path is None:
            return
        lines = [json.dumps({"key": key, **plain(completion)}) for key, completion in sorted(self._known.items())]
        temporary = self.path.with_name(f".{self.path.name}.writing")
        with temporary.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._torn = False


def plain(completion: Completion) -> dict[str, Any]:
    """Return a completion as a line has it; only a teacher without token ids has more than these."""
    more = {"text": completion.text, "reasoning": completion.reasoning, "unusable": completion.unusable}
    written = {name: value for name, value in more.items() if value or (name == "text" and value is not None)}
    return {"ids": completion.ids, "finished": completion.finished, **written}


def from_plain(entry: Mapping[str, Any]) -> Completion:
    """Return the completion of a line.

    Raises:
        KeyError, TypeError: It is none.
    """
    more = {name: str(entry.get(name, "")) for name in ("reasoning", "unusable")}
    ids = entry["ids"] if entry.get("text") is None else entry.get("ids", ())
    return Completion(tuple(ids), bool(entry["finished"]), entry.get("text"), **more)


def key_of(identity: Mapping[str, Any], prompt: Sequence[Any]) -> str:
    """Return the key of one prompt's completion (token ids or chat messages) under a teacher and its settings."""
    text = json.dumps([identity, list(prompt)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(keys: Sequence[str]) -> int:
    """Return the seed of completions that are drawn together; the keys hold the settings' and tell copies apart."""
    return int(hashlib.sha256(" ".join(keys).encode()).hexdigest()[:15], 16)
