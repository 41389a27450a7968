"""The category of each row: a column, what a function of the user's returns, or a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError, nearest, there_are
from .clusters import clusters_of
from .diversity import NO_CATEGORY, Categorize
from .near_duplicates import RowInputs
from .plain_rows import plain_rows
from .row_faults import OURS, PACKED, Cells
from .rows import packed_columns

if TYPE_CHECKING:
    from datasets import Dataset

MISSING = ("NAType", "NaTType")  # pandas' types of a missing value
ALL = "all"  # the only category, if there are no others


def one_category(order: Sequence[int]) -> list[str]:
    """Return one category for all rows."""
    return [ALL] * len(order)


def by_column(dataset: Dataset, column: str, *, source: str = "data") -> Categorize:
    """Return the categories that a column names; an empty cell is a category of its own.

    Raises:
        DataError: There is no such column.
    """
    check_column(dataset, column, flag="--category-column", source=source)
    cells = dataset.select_columns([column if column in dataset.column_names else PACKED])
    return lambda order: [category_name(row.get(column)) for row in plain_rows(cells.select(order))]


def check_column(dataset: Dataset, column: str, *, flag: str, source: str = "data") -> None:
    """Raise DataError if rows have no such column, naming the flag that names it."""
    names = [name for name in dataset.column_names if name not in OURS]
    if column not in names and not packed_columns(dataset, {column}):
        raise DataError(
            f"{source} has no column {column!r}; {there_are(names)}.{nearest(column, names)} Name another with {flag}."
        )


def by_function(
    dataset: Dataset, function: Callable[[Cells], object], *, name: str, places: Sequence[str]
) -> Categorize:
    """Return the categories that a function returns for a row, a dict of its columns.

    Raises:
        DataError: When the categories are asked for and the function fails; it names the row.
    """

    def categories(order: Sequence[int]) -> list[str]:
        found = []
        for i, row in zip(order, plain_rows(dataset.select(order)), strict=True):
            try:
                found.append(category_name(function(row)))
            except Exception as error:  # whatever a user's function raises
                raise DataError(
                    f"category_function {name!r} fails for {places[i]} with {type(error).__name__}: {error}; correct "
                    "the function."
                ) from error
        return found

    return categories


def by_clusters(inputs: RowInputs, count: int, *, seed: int) -> Categorize:
    """Return clusters of inputs, see `clusters_of`, named by their number and words."""

    def categories(order: Sequence[int]) -> list[str]:
        clusters = clusters_of([inputs.texts[i] for i in order], count, seed=seed)
        return [f"{label + 1}: {clusters.names[label]}" for label in clusters.labels]

    return categories


def category_name(value: object) -> str:
    """Return the name of a category: text as it is, nothing as "(none)", anything else as JSON or by its own name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value).__name__ in MISSING or (isinstance(value, float) and value != value):
        return NO_CATEGORY
    try:
        name = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # such as a date
        name = str(value)
    return name.strip() or NO_CATEGORY
