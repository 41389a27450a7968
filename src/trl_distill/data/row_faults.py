"""Invalid values in a row: a lone surrogate, which UTF-8 cannot encode, or a duplicate JSON key.

Such a value does not stop reading: it is noted in the column `FAULTS`, and the row is bad if the value is used.
"""

from __future__ import annotations

import json
import re
from typing import Any

Cells = dict[str, Any]  # a row's values by column, of any type

FAULTS = "__faults__"  # column with the faults of a row as a JSON object: column name to reason
_SURROGATE = re.compile("[\ud800-\udfff]")


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


def with_faults(row: Cells) -> Cells:
    """Return a row that Arrow can hold, with its faults in the column `FAULTS` if it has any."""
    faults = {name: reason for name, reason in ((n, _fault(value)) for n, value in row.items()) if reason is not None}
    if isinstance(row, RepeatedKey):
        faults[row.key] = f"the key {row.key!r} appears twice"
    if not faults and not any(_SURROGATE.search(name) for name in row if isinstance(name, str)):
        return row
    repaired = {_repaired(name): _repaired(value) for name, value in row.items()}
    return {**repaired, FAULTS: json.dumps({_repaired(name): reason for name, reason in faults.items()})}


def _fault(value: object) -> str | None:
    if isinstance(value, str):
        found = _SURROGATE.search(value)
        return None if found is None else f"half of a surrogate pair, \\u{ord(found[0]):x}, without the other"
    if isinstance(value, RepeatedKey):
        return f"the key {_repaired(value.key)!r} appears twice"
    if isinstance(value, dict):
        return next((r for r in (_fault(part) for pair in value.items() for part in pair) if r is not None), None)
    if isinstance(value, (list, tuple)):
        return next((r for r in map(_fault, value) if r is not None), None)
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
