"""JSON files to rows: a list, lines, one object, or an object of splits."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .row_faults import Cells, UnreadableRow, json_object, with_faults

LINES, DOCUMENTS = (".jsonl", ".ndjson"), (".json",)
CONVERSATIONS = ("messages", "conversations")
WRAPPERS = ("data", "rows", "examples")  # keys whose list is the rows, whatever else stands beside it

_LONG_NUMBER = re.compile(r"\d{4301}", re.ASCII)  # Python converts no longer text to a whole number

Placed = Iterator[tuple[str, Cells]]


def json_rows(path: Path, split: str | None = None) -> Placed:
    """Yield the rows of a JSON list, of JSON lines, or of one JSON object, each with its place.

    The `split` of an object of splits is the key whose rows are wanted, see `json_splits`.

    Raises:
        DataError: The file is malformed (with its line), or holds no rows.
        OSError, UnicodeDecodeError: It cannot be read.
    """
    if split is not None:
        yield from _rows_of(path, _document(path)[split])
        return
    first, lines = _sniff(path)
    if lines:
        yield from _json_lines(path)
    elif first:
        yield from _json_document(path)


def json_splits(path: Path, names: Collection[str]) -> list[str]:
    """Return the keys of a file that is one object of splits, `{"train": [...], "test": [...]}`; else nothing.

    `names` are what splits are called, in small letters.
    """
    if path.suffix.lower() not in DOCUMENTS:
        return []
    try:
        first, lines = _sniff(path)
        if lines or not first.lstrip().startswith("{"):
            return []
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return []  # reading its rows says why
    found = [key for key, rows in value.items() if key.lower() in names and isinstance(rows, list)]
    lists = [key for key, rows in value.items() if isinstance(rows, list)]
    objects = all(isinstance(row, dict) for key in found for row in value[key])
    return found if found == lists and objects else []


def _sniff(path: Path) -> tuple[str, bool]:
    """Return a file's first line that is not empty, and whether each line is a row."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        lines = path.suffix.lower() in LINES or (_parses(first) and any(line.strip() for line in file))
    return first, lines and not first.lstrip().startswith("[")


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(path: Path) -> Placed:
    parse = json.JSONDecoder(object_pairs_hook=json_object).decode
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = _row(parse(line.strip()))
            except (ValueError, RecursionError) as error:
                raise DataError(_malformed(path, number, error)) from None
            except UnreadableRow as error:
                raise DataError(f"{path}, line {number}, {error}.") from None
            yield f"line {number}", row


def _json_document(path: Path) -> Placed:
    value = _document(path)
    if isinstance(value, dict):
        value = _unwrapped(value)
    if not isinstance(value, list):
        raise DataError(f"{path} holds a single {type(value).__name__}; give a list of objects or one object a line.")
    yield from _rows_of(path, value)


def _document(path: Path) -> Any:
    text = path.read_text(encoding="utf-8-sig")
    try:
        return json.loads(text, object_pairs_hook=json_object)
    except json.JSONDecodeError as error:
        raise DataError(_malformed(path, error.lineno, error)) from None
    except (ValueError, RecursionError) as error:
        found = _LONG_NUMBER.search(text) if isinstance(error, ValueError) else None
        line = None if found is None else text.count("\n", 0, found.start()) + 1
        raise DataError(_malformed(path, line, error)) from None


def _rows_of(path: Path, values: list[object]) -> Placed:
    for number, value in enumerate(values, 1):
        try:
            row = _row(value)
        except UnreadableRow as error:
            raise DataError(f"{path}, row {number}, {error}.") from None
        yield f"row {number}", row


def _unwrapped(value: Cells) -> list[object]:
    """Return the rows of an object: a list under a wrapper's name, its columns, or itself as the only row."""
    for name in WRAPPERS:
        rows = value.get(name)
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            return rows
    lists = [cells for cells in value.values() if isinstance(cells, list) and cells]
    if len(lists) < len(value) or set(value) & {*CONVERSATIONS, "prompt", "completion"}:
        return [value]
    objects = [all(isinstance(cell, dict) for cell in cells) for cells in lists]
    if objects == [True]:
        return lists[0]
    if not any(objects) and len({len(cells) for cells in lists}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    return [value]


def _row(value: object) -> Cells:
    return with_faults(value if isinstance(value, dict) else {"text": value})  # a bare value is text, good or bad


def _malformed(path: Path, line: int | None, error: ValueError | RecursionError) -> str:
    where = f"{path}, line {line}," if line is not None else str(path)
    if isinstance(error, RecursionError):
        return f"{where} has a value that is nested too deeply; flatten it, or write it as text."
    if not isinstance(error, json.JSONDecodeError):  # the one other error of Python's JSON reader
        return f"{where} has a whole number of too many digits; write it in quotes, as text."
    return f"{where} is not valid JSON ({error.msg}, column {error.colno}); repair the line or remove it."
