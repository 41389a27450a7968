"""Data in memory to a `datasets.Dataset`: a list of dicts and a pandas DataFrame; a sentence for all else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .file_readers import Placed, read_placed
from .row_faults import UnreadableRow, with_faults

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

KNOWN_TYPES = "a datasets.Dataset, a list of dicts or a pandas DataFrame"


def as_dataset(data: Any, *, name: str, accepted: str = KNOWN_TYPES) -> Dataset:
    """Return data in memory as a dataset.

    Args:
        data: A `datasets.Dataset`, which is returned as it is; a list of dicts; or a pandas DataFrame, whose index is
            left out. A value keeps its type: objects get no empty keys from other rows.
        name: The data in messages.
        accepted: The accepted types, in messages.

    Raises:
        DataError: Anything else, naming the call that converts it; or no rows.
    """
    from datasets import Dataset

    if isinstance(data, Dataset):
        if len(data) == 0:
            raise DataError(f"{name} has no rows; give data with at least one.")
        return data
    if is_frame(data):
        known = data.astype(object)
        data = known.where(data.notna(), None).to_dict("records")  # a missing text is NaN there
    if not isinstance(data, (list, tuple)):
        raise DataError(f"{name} is {_described(data, name, accepted)}.")
    for number, row in enumerate(data, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"{name} is a list whose item {number} is {_article(row)}, not a dict; give a dict for each row, such "
                "as {'text': '...'}."
            )

    def rows() -> Placed:
        for number, row in enumerate(data, 1):
            try:
                yield f"row {number}", with_faults(dict(row))
            except UnreadableRow as error:
                raise DataError(f"{name}, row {number}, {error}.") from None

    found = read_placed(rows)
    if found is None:
        raise DataError(f"{name} has no rows; give data with at least one.")
    return found


def for_trainer(data: object, *, name: str) -> Dataset | IterableDataset:
    """Return a trainer's rows: a non-empty stream unchanged, everything else converted by `as_dataset`."""
    from datasets import IterableDataset

    if not isinstance(data, IterableDataset):
        return as_dataset(data, name=name, accepted=f"{KNOWN_TYPES}, or an IterableDataset")
    if next(iter(data), None) is None:
        raise DataError(f"{name} has no rows; give data with at least one.")
    return data


def for_evaluation(data: object) -> Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None:
    """Return a trainer's evaluation rows: converted by `for_trainer`, a dict of such datasets, or None."""
    if data is None:
        return None
    if isinstance(data, dict):
        return {key: for_trainer(part, name=f"eval_dataset[{key!r}]") for key, part in data.items()}
    return for_trainer(data, name="eval_dataset")


def is_frame(data: object) -> bool:
    """Whether data is a pandas DataFrame; pandas itself is not loaded for the question."""
    return any(c.__name__ == "DataFrame" and c.__module__.partition(".")[0] == "pandas" for c in type(data).__mro__)


def _described(data: object, name: str, accepted: str) -> str:
    modules = {c.__module__.partition(".")[0] for c in type(data).__mro__}
    torch_data = any(c.__module__.startswith("torch.utils.data") for c in type(data).__mro__)
    if isinstance(data, (str, os.PathLike)):
        return f"a path, {os.fspath(data)!r}; load it with trl_distill.data.load_data({os.fspath(data)!r})[0]"
    if isinstance(data, Mapping) and data and ("datasets" in modules or not _is_column(next(iter(data.values())))):
        first = next(iter(data))
        return f"{_article(data)} of {', '.join(map(repr, data))}; give one of them, such as {name}[{first!r}]"
    if isinstance(data, Mapping):
        return f"{_article(data)} of columns; convert it with datasets.Dataset.from_dict({name})"
    if torch_data:
        has_places = hasattr(data, "__len__") and hasattr(data, "__getitem__")
        rows = f"[{name}[i] for i in range(len({name}))]" if has_places else f"list({name})"
        return f"a torch dataset ({type(data).__name__}); convert it with datasets.Dataset.from_list({rows})"
    if isinstance(data, Iterator):
        return f"{_article(data)}, which can be read once; convert it with datasets.Dataset.from_list(list({name}))"
    if "polars" in modules:
        return f"a polars {type(data).__name__}; convert it with {name}.to_dicts()"
    if "pyarrow" in modules:
        return f"a pyarrow {type(data).__name__}; convert it with datasets.Dataset({name})"
    return f"{_article(data)}; give {accepted}"


def _is_column(value: object) -> bool:
    """Whether a dict's value looks like a column: a list of other things than rows."""
    return isinstance(value, (list, tuple)) and not all(isinstance(item, Mapping) for item in value)


def _article(value: object) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
