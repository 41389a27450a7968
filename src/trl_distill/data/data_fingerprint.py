"""A fingerprint of a run's training rows, so that it is not resumed on different rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

DIGEST = 4  # bytes of a row's
BATCH = 10_000
VALUES = "values"  # the column of `read_rows` with the other columns as JSON


def fingerprint(rows: Dataset, *, leave_out: Collection[str] = (), fields: Collection[str] | None = None) -> str:
    """Return the digests of all rows, in their order, as one text of hexadecimal digits.

    Args:
        rows: What `read_rows`, or `Recipe.prepare`, returned.
        leave_out: Columns that do not count; `row` never does.
        fields: Fields of the column `values` to include; None includes all.
    """
    columns = [name for name in rows.column_names if name not in {"row", *leave_out}]
    digests: list[str] = []
    for table in rows.select_columns(columns).with_format("arrow").iter(BATCH):
        parts = [
            _fields(table[name], fields) if name == VALUES and fields is not None else _bytes(table[name])
            for name in columns
        ]
        digests += [_digest(values) for values in zip(*parts, strict=True)]
    return "".join(digests)


def difference(before: str, now: str, numbers: Sequence[int]) -> str | None:
    """Describe how rows (`now`, with their `numbers`) differ from those of an earlier run; None if they do not."""
    if before == now:
        return None
    size = 2 * DIGEST
    old, new = ([text[i : i + size] for i in range(0, len(text), size)] for text in (before, now))
    if len(old) != len(new):
        return f"it had {len(old):,} rows and now there are {len(new):,}"
    if sorted(old) == sorted(new):
        return "its rows were in another order"
    places = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if len(places) == 1:
        return f"row {numbers[places[0]]} was different"
    return f"{len(places):,} of its {len(old):,} rows were different, the first of them row {numbers[places[0]]}"


def _digest(values: Sequence[bytes]) -> str:
    found = hashlib.blake2b(digest_size=DIGEST)
    for value in values:
        found.update(len(value).to_bytes(8, "little") + value)
    return found.hexdigest()


def _bytes(column: pa.ChunkedArray) -> list[bytes]:
    import pyarrow as pa

    found: list[bytes] = []
    for chunk in column.chunks:
        if pa.types.is_list(chunk.type) and pa.types.is_integer(chunk.type.value_type) and not chunk.null_count:
            numbers = chunk.values.to_numpy(zero_copy_only=False).astype("int64")
            edges = chunk.offsets.to_pylist()
            found += [numbers[a:b].tobytes() for a, b in pairwise(edges)]
        else:
            found += [repr(value).encode() for value in chunk.to_pylist()]
    return found


def _fields(column: pa.ChunkedArray, fields: Collection[str]) -> list[bytes]:
    if not fields:
        return [b""] * len(column)
    wanted = sorted(fields)
    read = (json.loads(text) for text in column.to_pylist())
    return [repr([values.get(name) for name in wanted]).encode() for values in read]
