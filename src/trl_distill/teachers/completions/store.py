"""Stored completions and log-probabilities of a teacher: one JSON line each, found by its key.

A key is made from the teacher, the prompt (token ids, or messages) and the generation settings, never from a row
number. A line is appended and flushed before the next is asked for. It ends with its own CRC-32: one that a kill has
cut, or that has a flipped bit, is ignored and made again. Lines of earlier versions have no CRC-32.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from ...data.atomic_file import append, flush, write_bytes
from ...data.checksum import checksum_of
from ...data.folder_lock import file_lock
from ...errors import ProjectError, TeacherError, printable
from ...models.generation import Completion

Entry = TypeVar("Entry")
JsonObject = dict[str, Any]
CHECKSUM = "crc32"  # of a line's bytes, as if it ended before
SHOWN = 3  # damaged lines that are named


class JsonlStore(Generic[Entry]):
    """Entries by key, kept in memory and appended to a file; they are JSON objects unless a subclass converts them.

    Args:
        path: JSON-lines file, made when the first entry is added; None keeps nothing on disk.
        complete: What the file is a finished part of, as an error calls it; nothing is asked for then. None adds.

    Raises:
        ProjectError: The path is a folder's.
    """

    to_line: Callable[[Entry], JsonObject] = dict  # type: ignore[assignment]
    from_line: Callable[[JsonObject], Entry] = dict  # type: ignore[assignment]

    def __init__(self, path: str | os.PathLike[str] | None, *, complete: str | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.complete = complete
        self._entries: dict[str, Entry] = {}
        self._size, self._torn = 0, False
        self._damaged: list[int] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> Entry:
        return self._entries[key]

    def refresh(self) -> None:
        """Read what another process has added since.

        Raises:
            ProjectError: A folder is in the place of the file.
        """
        if self.path is not None and self.path.is_dir():
            raise ProjectError(
                f"{str(self.path)!r} is a folder, and answers are to be kept in a file of this name; remove it, or "
                "give another place."
            )
        if self.path is None or not self.path.is_file() or self.path.stat().st_size == self._size:
            return
        content = self.path.read_bytes()
        self._size, self._torn = len(content), bool(content) and not content.endswith(b"\n")
        self._damaged = []
        for number, text in enumerate(content.split(b"\n"), 1):
            if not text:
                continue
            try:
                line = _checked(text)
                if b"\\ud" in text:
                    json.dumps(line, ensure_ascii=False).encode()  # half a surrogate pair is no text: asked for again
                self._entries[line["key"]] = self.from_line(line)
            except (ValueError, KeyError, TypeError, RecursionError):
                self._damaged.append(number)  # it is made again

    def _report_damage(self) -> None:
        """Print which lines of the file are damaged, if they were not printed already: what they held is missing."""
        if not self._damaged:
            return
        numbers = ", ".join(map(str, self._damaged[:SHOWN])) + (", ..." if len(self._damaged) > SHOWN else "")
        lines = f"line {numbers} is" if len(self._damaged) == 1 else f"lines {numbers} are"
        print(printable(f"{self.path}: {lines} damaged and ignored; what is missing is made again."))
        self._damaged = []

    @contextmanager
    def asking(self, keys: Iterable[str]) -> Iterator[set[str]]:
        """Yield which of the keys have no entry; if any, hold the file, so that no other process asks for them too.

        Raises:
            ProjectError: Another process holds it.
            TeacherError: Some have none, and the file is a part of something complete.
        """
        wanted = set(keys)
        if self.path is None or wanted <= self._entries.keys():
            yield wanted - self._entries.keys()
            return
        if self.complete is not None:
            lacking = len(wanted - self._entries.keys())
            raise TeacherError(
                f"{self.complete} is complete, without a completion for {lacking:,} of these prompts; give the rows "
                "that it was made from, or another folder."
            )
        with file_lock(self.path, what=f"the file {str(self.path)!r}", instead="another folder"):
            self.refresh()
            missing = wanted - self._entries.keys()
            if missing:
                self._report_damage()
            yield missing

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Keep entries and write them to the file before returning."""
        self._entries.update(entries)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        data = (b"\n" if self._torn else b"") + self._lines(entries)
        append(self.path, data)
        if is_new:
            flush(self.path.parent)
        self._size, self._torn = self._size + len(data), False

    def settle(self) -> None:
        """Rewrite the file in the order of its keys and without torn lines, so that it does not depend on kills."""
        if self.path is None:
            return
        data = self._lines(dict(sorted(self._entries.items())))
        write_bytes(self.path, data)
        self._size, self._torn = len(data), False

    def _lines(self, entries: Mapping[str, Entry]) -> bytes:
        texts = (json.dumps({"key": key, **self.to_line(entry)}).encode() for key, entry in entries.items())
        return b"".join(text[:-1] + _end(text) + b"\n" for text in texts)


def _end(text: bytes) -> bytes:
    """Return the end of the line of a JSON object, from its closing brace on."""
    return f', "{CHECKSUM}": "{checksum_of(text)}"}}'.encode()


def _checked(text: bytes) -> JsonObject:
    """Return the JSON object of a line; raise ValueError if it is none, or not what was written."""
    line = json.loads(text)
    if not isinstance(line, dict):
        raise ValueError("the line is no object")
    if line.pop(CHECKSUM, None) is not None:
        length = len(_end(b""))
        if text[-length:] != _end(text[:-length] + b"}"):
            raise ValueError("the line differs from its checksum")
    return line


class CompletionStore(JsonlStore[Completion]):
    """Completions that a teacher wrote; only one without token ids has more than `ids` and `finished`."""

    @staticmethod
    def to_line(entry: Completion) -> JsonObject:
        more = {"text": entry.text, "reasoning": entry.reasoning, "unusable": entry.unusable}
        given = {name: value for name, value in more.items() if value or (name == "text" and value is not None)}
        return {"ids": entry.ids, "finished": entry.finished, **given}

    @staticmethod
    def from_line(line: JsonObject) -> Completion:
        """Return the completion of a line; raise KeyError or TypeError if it is none."""
        text, finished = line.get("text"), line["finished"]
        ids = line["ids"] if text is None else line.get("ids", [])
        more = {name: line.get(name, "") for name in ("reasoning", "unusable")}
        texts = [*more.values(), *([] if text is None else [text])]
        if not (isinstance(ids, list) and isinstance(finished, bool) and all(isinstance(own, str) for own in texts)):
            raise TypeError("a field has another type than a completion's")
        if any(type(token) is not int or token < 0 for token in ids):
            raise TypeError("ids are not token ids")
        return Completion(tuple(ids), finished, text, **more)


def key_of(identity: Mapping[str, object], prompt: Sequence[object]) -> str:
    """Return the key of one prompt's completion (token ids or chat messages) under a teacher and its settings."""
    text = json.dumps([identity, list(prompt)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(keys: Sequence[str]) -> int:
    """Return the seed of completions that are sampled together; the keys hold the settings' and tell copies apart."""
    return int(hashlib.sha256(" ".join(keys).encode()).hexdigest()[:15], 16)
