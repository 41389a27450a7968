"""Invalid values in a row: a lone surrogate, which UTF-8 cannot encode, or a duplicate JSON key.

Such a value does not stop reading: it is noted in the column `FAULTS`, and the row is bad if the value is used.
A row that no table can hold stops it: a column with a name of ours or with a zero byte, a value nested too deeply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ..errors import quoted

Cells = dict[str, Any]  # a row's values by column, of any type

FAULTS = "__faults__"  # column with the faults of a row as a JSON object: column name to reason
PLACE = "__place__"  # column with the place of a row, for example "line 7"
PACKED = "__packed__"  # column with an object of a row's values in columns that few rows have
OURS = (PLACE, FAULTS, PACKED)
INDEX = "__index__"  # column with the place of a row in the data, while inputs are compared
DEEPEST = 100  # objects and lists in each other, far fewer than Python's own limit
_SURROGATE = re.compile("[\ud800-\udfff]")


class UnreadableRow(Exception):
    """A row that cannot be in a table; the text says why, and what to do."""


class RepeatedKey(Cells):
    """A JSON object that had a key twice; the last value counts."""

    key: str = ""


def json_object(pairs: list[tuple[str, object]]) -> Cells:
    """Return a JSON object's pairs as a dict, one with a key twice as a `RepeatedKey`."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    repeated = RepeatedKey(found)
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def check_names(names: Iterable[object], *, ours: bool = True) -> None:
    """Raise UnreadableRow for a name that no column of a table can have, without `ours` also for one of our names."""
    for name in names:
        if name in OURS and not ours:
            raise UnreadableRow(f"has a column {name!r}, a name that is in use here; rename it")
        if isinstance(name, str) and "\0" in name:
            raise UnreadableRow(f"has a column {quoted(name)}, a name with a zero byte; rename it")


def check_ours(row: Cells) -> None:
    """Raise UnreadableRow if a column has one of our names without being ours, as rows that were read before have."""
    place, faults, packed = (row.get(name) for name in OURS)
    try:
        read = json.loads(faults or "{}")
        ours = isinstance(read, dict) and isinstance(place, str | None) and isinstance(packed, dict | None)
    except (TypeError, ValueError, RecursionError):
        ours = False
    if not ours:
        name = next(name for name in OURS if row.get(name) is not None)
        raise UnreadableRow(f"has a column {name!r}, a name that is in use here; rename it")


def with_faults(row: Cells) -> Cells:
    """Return a row that Arrow can hold, with its faults in the column `FAULTS` if it has any.

    Raises:
        UnreadableRow: Its columns or values cannot be in a table.
    """
    check_names(row)
    if not row.keys().isdisjoint(OURS):
        check_ours(row)
    faults = {name: reason for name, reason in ((n, _fault(value)) for n, value in row.items()) if reason is not None}
    if isinstance(row, RepeatedKey):
        faults[row.key] = f"the key {row.key!r} appears twice"
    if not faults and not any(_SURROGATE.search(name) for name in row if isinstance(name, str)):
        return row
    repaired = {_repaired(name): _repaired(value) for name, value in row.items()}
    return {**repaired, FAULTS: json.dumps({_repaired(name): reason for name, reason in faults.items()})}


def _fault(value: object, depth: int = 0) -> str | None:
    if depth > DEEPEST:
        raise UnreadableRow(f"has a value that is nested more than {DEEPEST} deep; flatten it, or write it as text")
    if isinstance(value, str):
        found = _SURROGATE.search(value)
        return None if found is None else f"half of a surrogate pair, \\u{ord(found[0]):x}, without the other"
    if isinstance(value, RepeatedKey):
        return f"the key {_repaired(value.key)!r} appears twice"
    if isinstance(value, dict):
        parts = (part for pair in value.items() for part in pair)
        return next((r for r in (_fault(part, depth + 1) for part in parts) if r is not None), None)
    if isinstance(value, (list, tuple)):
        return next((r for r in (_fault(part, depth + 1) for part in value) if r is not None), None)
    return None


def _repaired(value: Any) -> Any:
    """Return a value with the replacement character for each half of a surrogate pair."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_repaired(name): _repaired(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_repaired(part) for part in value]
    return value
