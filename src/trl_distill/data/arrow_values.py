"""Arrow columns to plain values, without decoding images, audio and other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Convert = Callable[[object], object]


def column_of(dataset: Dataset, name: str) -> pa.ChunkedArray:
    """Return a column of a dataset without going through its rows."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def array_of(dataset: Dataset, name: str) -> np.ndarray:
    """Return a column of numbers, truths or texts as an array."""
    return np.asarray(column_of(dataset, name).to_numpy())


def lengths_of(dataset: Dataset, name: str) -> np.ndarray:
    """Return the lengths of the lists in a column."""
    import pyarrow.compute as pc

    return np.asarray(pc.list_value_length(column_of(dataset, name)).to_numpy())


def counts_of(dataset: Dataset, name: str) -> dict[str, int]:
    """Count the rows with each value of a column, in order of first appearance."""
    return {pair["values"]: pair["counts"] for pair in column_of(dataset, name).value_counts().to_pylist()}


def highest_of(dataset: Dataset, name: str) -> int:
    """Return the highest number in the lists of a column; -1 if they are empty."""
    import pyarrow.compute as pc

    found = pc.max(pc.list_flatten(column_of(dataset, name))).as_py()
    return -1 if found is None else int(found)


def holds_bytes(kind: object) -> bool:
    """Whether a column's feature holds bytes somewhere, as images, sounds, videos and documents do."""
    from datasets import Json, Value

    if isinstance(kind, dict):
        return any(map(holds_bytes, kind.values()))
    if isinstance(kind, (list, tuple)):
        return any(map(holds_bytes, kind))
    if hasattr(kind, "feature"):
        return holds_bytes(kind.feature)
    if isinstance(kind, Value):
        return "binary" in kind.dtype
    return hasattr(kind, "decode_example") and not isinstance(kind, Json)


def plain_values(column: pa.ChunkedArray, kind: object) -> list[Any]:
    """Return a column's values; an object loses the empty keys that Arrow gives it, JSON text keeps its own."""
    import pyarrow as pa

    try:
        values = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, ImportError):  # such as a date after the year 9999
        try:
            values = column.cast(pa.string()).to_pylist()
        except (pa.ArrowException, ValueError):  # the latter is text that is not UTF-8
            return [_readable(value) for value in column]
    convert = _converter(kind)
    return values if convert is None else [convert(value) for value in values]


def _readable(value: pa.Scalar) -> object:
    """Return a value, or None if Python has none like it."""
    import pyarrow as pa

    try:
        return value.as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        return None


def _converter(kind: object) -> Convert | None:
    """Return a converter from Arrow values to plain ones; None if they are plain already."""
    from datasets import Json

    if isinstance(kind, Json):
        return _from_json
    if isinstance(kind, dict):
        parts = {name: _converter(part) for name, part in kind.items()}
        return lambda value: value if value is None else _object(value, parts)
    inner = kind[0] if isinstance(kind, (list, tuple)) and kind else getattr(kind, "feature", None)
    convert = None if inner is None else _converter(inner)
    if convert is None:
        return None
    # a list of structs may come as a struct of lists, which is an object
    return lambda value: [convert(part) for part in value] if isinstance(value, list) else value


def _from_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


def _object(value: object, parts: dict[str, Convert | None]) -> object:
    """Return an object with converted parts, without those that are empty."""
    if not isinstance(value, dict):
        return value
    found = ((name, part, parts.get(name)) for name, part in value.items() if part is not None)
    return {name: part if convert is None else convert(part) for name, part, convert in found}
