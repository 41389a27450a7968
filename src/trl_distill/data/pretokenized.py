"""Pretokenized rows, in TRL's columns: both models read the ids unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DataError
from ..prompts.rendering import OWN
from ..prompts.row import Row
from ..prompts.template import Template
from .row_faults import Cells
from .row_report import RowReport

if TYPE_CHECKING:
    from datasets import Dataset

IDS, LABELS = "input_ids", "labels"
MASKS = ("completion_mask", "assistant_masks")
IGNORE = -100


def is_tokenized(dataset: object) -> bool:
    """Whether a dataset's rows are token ids."""
    return IDS in (getattr(dataset, "column_names", None) or ())


def check_tokenized(dataset: Dataset, templates: Sequence[Template], *, needs: str | None = None, source: str) -> None:
    """Raise DataError if text is needed of rows that are token ids; `needs` is what else needs it, with a verb."""
    unlike = (f"{t.name} is not {{input}}" for t in templates if not t.is_identity and t.system.text is None)
    changed = ("a system message is given or dropped" for t in templates if not t.system.keep)
    other = next(changed, None) or next(unlike, needs)
    own = next((f"there is a column {name!r}" for name in OWN if name in dataset.column_names), other)
    if own is not None:
        raise DataError(
            f"{source} has token ids ({IDS!r}), which both models read as they are, but {own}, which needs text; give "
            "rows of text or messages."
        )


def read_tokenized(dataset: Dataset, *, source: str) -> tuple[Dataset, RowReport]:
    """Read rows of token ids in the form of `read_rows`, and the columns `ids` and `mask` (1 on what is learned).

    `labels` says what is learned (all that is not -100); else it is what all of `completion_mask` and
    `assistant_masks` mark; else every token.

    Raises:
        DataError: No row, or columns of one that do not fit together.
    """
    if len(dataset) == 0:
        raise DataError(f"{source} has no rows; give data with at least one.")

    def read(row: Cells, i: int) -> Cells:
        ids = list(row[IDS])
        return {**Row(i + 1, "", {}).to_columns(), "ids": ids, "mask": _mask(row, ids, f"{source}, row {i + 1}")}

    how = {"remove_columns": dataset.column_names, "load_from_cache_file": False, "desc": f"Reading {source}"}
    rows = dataset.with_format(None).map(read, with_indices=True, **how)
    return rows, RowReport(len(rows), len(rows), ())


def _mask(row: Cells, ids: list[int], where: str) -> list[int]:
    """Return 1 for each token that is learned and 0 for the others."""
    names = (LABELS,) if row.get(LABELS) is not None else tuple(n for n in MASKS if row.get(n) is not None)
    for name in names:
        if len(row[name]) != len(ids):
            raise DataError(f"{where}: {name!r} has {len(row[name])} entries and {IDS!r} {len(ids)}; make them alike.")
    if names != (LABELS,):
        return [int(all(row[name][k] for name in names)) for k in range(len(ids))]
    for k, label in enumerate(row[LABELS]):
        if label not in (IGNORE, ids[k]):
            raise DataError(
                f"{where}: {LABELS!r} has {label} where {IDS!r} has {ids[k]}; a label is its token's id, or {IGNORE}."
            )
    return [int(label != IGNORE) for label in row[LABELS]]
