"""Rows of a dataset as they were in their file, and written to a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .arrow_values import holds_bytes, plain_values
from .atomic_file import naming
from .row_faults import OURS, PACKED, Cells
from .rows import BATCH

if TYPE_CHECKING:
    from datasets import Dataset


def plain_rows(dataset: Dataset) -> Iterator[Cells]:
    """Yield each row's values by column, without the columns that reading adds, and without bytes, undecoded."""
    kinds = {name: kind for name, kind in dataset.features.items() if not holds_bytes(kind)}
    for table in dataset.select_columns(list(kinds)).with_format("arrow").iter(BATCH):
        columns = [plain_values(table[name], kind) for name, kind in kinds.items()]
        for values in zip(*columns, strict=True):
            row = dict(zip(kinds, values, strict=True))
            row |= row.get(PACKED) or {}
            yield {name: value for name, value in row.items() if name not in OURS}


def columns_of_bytes(dataset: Dataset) -> list[str]:
    """Return the columns that `plain_rows` leaves out, such as images."""
    return [name for name, kind in dataset.features.items() if holds_bytes(kind)]


def write_rows(path: Path, rows: Iterable[Cells]) -> None:
    """Write rows as JSON lines; what JSON has no word for (dates, decimals) as text, and NaN as null."""
    with naming(path), path.open("w", encoding="utf-8") as file:
        for row in rows:
            found = {name: None if _is_nan(value) else value for name, value in row.items()}
            file.write(json.dumps(found, ensure_ascii=False, default=str) + "\n")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and value != value
