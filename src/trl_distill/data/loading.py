"""`data_path` to datasets: a file, a folder, a saved dataset, a Hub name, or a dataset in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.user_files import check_ordinary, user_path
from ..errors import DataError, first_line, nearest, quoted
from .arrow_files import load_arrow_files
from .arrow_values import plain_values
from .file_readers import PLACE, TEXTS, Part, read_placed, read_texts
from .json_reader import Placed, json_splits
from .memory import KNOWN_TYPES, as_dataset
from .row_report import RowReport
from .rows import read_rows

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["RowReport", "load_data", "read_rows"]

BINARIES = (".parquet", ".arrow")
SUFFIXES = (*TEXTS, *BINARIES)
ACCEPTED = f"files end in {', '.join(SUFFIXES)}"
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
BOOKKEEPING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
BUILDERS = ("json", "csv", "text", "parquet", "arrow", "pandas", "xml", "webdataset", "imagefolder", "audiofolder")

Splits = Mapping[str, "Callable[[], Dataset]"]


class NoSplit(DataError):
    """Data without a split of the name that was asked for."""


def load_data(
    data_path: Any,
    *,
    train_split: str = "train",
    valid_split: str | None = None,
    config_name: str | None = None,
) -> tuple[Dataset, Dataset | None]:
    """Load the rows to train on, and those to evaluate on if there are any.

    Args:
        data_path: A file (json as a list or as lines, jsonl, csv, tsv, parquet, arrow, or txt with one row per line
            that is not empty); a folder of them, in which names such as `train` and `valid` of files or sub-folders
            name the splits, as the keys of a JSON object do; a `save_to_disk` folder; a Hub dataset; or, in memory, a
            list of dicts, a pandas DataFrame, a `datasets.Dataset`, or a dict of them by split (`DatasetDict`).
        train_split: Split to train on, as `datasets` writes it: "train", "train[:90%]", "train+test".
        valid_split: Split to evaluate on (default: the validation split of a folder or a `DatasetDict`).
        config_name: Configuration of a Hub dataset.

    Returns:
        (train, validation or None), with the columns of the data; rows of a line-based file also have their line in
        the column `file_readers.PLACE`.

    Raises:
        DataError: Data that cannot be found or read, or a split that is not there.
    """
    if not _is_local(data_path):
        return _from_hub(str(data_path), train_split, valid_split, config_name)
    if config_name is not None:
        raise DataError(f"data_config is {config_name!r}, but only a Hub dataset has configurations; leave it out.")
    name, splits = _local(data_path)
    train = _select(name, splits, train_split, "train_split")
    if valid_split is None:
        used = {_split_named(split, splits) for split in _names(train_split)}
        spare = _split_named("validation", splits)
        valid_split = spare if spare is not None and spare not in used else None
    return train, None if valid_split is None else _select(name, splits, valid_split, "valid_split")


def load_sources(sources: Sequence[Any], *, split: str = "train", config_name: str | None = None) -> Dataset:
    """Load the rows of several sources, one after another.

    Args:
        sources: What `load_data` takes, each.
        split: Split of each.
        config_name: Configuration of Hub datasets.

    Returns:
        The rows; if there are several sources, the place of each row (`file_readers.PLACE`) begins with its source.

    Raises:
        DataError: See `load_data`.
    """
    loaded = [load_data(source, train_split=split, config_name=config_name)[0] for source in sources]
    if len(loaded) > 1:
        loaded = [_placed(dataset, str(source)) for source, dataset in zip(sources, loaded, strict=True)]
    return _joined(loaded)


def _placed(dataset: Dataset, source: str) -> Dataset:
    """Return a dataset with its source before the place of each row."""
    places = [f"{source} {place}" for place in places_of(dataset)]
    if PLACE in dataset.column_names:
        dataset = dataset.remove_columns([PLACE])
    return dataset.add_column(PLACE, places)


def places_of(dataset: Dataset) -> list[str]:
    """Return the place of each row in messages, such as "line 7", or "row 7" if the data has no lines."""
    if PLACE in dataset.column_names:
        return [place or f"row {i + 1}" for i, place in enumerate(dataset[PLACE])]
    return [f"row {i + 1}" for i in range(len(dataset))]


def check_there(data_path: object, *, setting: str = "data_path") -> None:
    """Refuse the name of a file or folder that is not there, without reading anything; others pass.

    Args:
        data_path: What `load_data` takes.
        setting: The setting that it was given in, for messages.

    Raises:
        DataError: It is empty, or there is no such file or folder.
    """
    if isinstance(data_path, (str, os.PathLike)) and _is_local(data_path):
        _path_of(data_path, setting)


def _is_local(data_path: object) -> bool:
    """Whether data is in memory, or its name is that of a file or folder, there or not."""
    if not isinstance(data_path, (str, os.PathLike)):
        return True
    text = os.fspath(data_path)
    exists = bool(text) and user_path(text, name="data_path", error=DataError).exists()
    named = text.lower().endswith(SUFFIXES) or HUB_NAME.fullmatch(text) is None or text in BUILDERS
    return exists or named or isinstance(data_path, os.PathLike)


def _local(data_path: object) -> tuple[str, Splits]:
    """Return the name of local data in messages, and its unread splits."""
    if not isinstance(data_path, (str, os.PathLike)):
        return _in_memory(data_path)
    path, name = _path_of(data_path, "data_path"), repr(os.fspath(data_path))
    if path.is_dir():
        return name, _folder(path, name)
    return name, {split: partial(_load_files, parts) for split, parts in _splits_of_file(path, "train").items()}


def _path_of(data_path: str | os.PathLike[str], setting: str) -> Path:
    """Return the path of a file or folder of data."""
    if not os.fspath(data_path):
        raise DataError(f"{setting} is empty; give a file, a folder or a Hub dataset.")
    path, name = user_path(data_path, name=setting, error=DataError), quoted(os.fspath(data_path))
    if not path.exists():
        folder = path.parent
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        what = "no such file or folder" if folder.is_dir() else f"there is no folder {str(folder)!r}"
        raise DataError(f"{setting} {name}: {what}.{nearest(path.name, there)} Give a file, a folder or a Hub dataset.")
    check_ordinary(path, name=f"{setting} {name}", error=DataError)
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{setting} {name} ends in {path.suffix or 'nothing'!r}; {ACCEPTED}.")
    return path


def _splits_of_file(path: Path, split: str) -> dict[str, list[Part]]:
    """Return the splits of a file: those that a JSON object holds, else `split`."""
    found: dict[str, list[Part]] = {}
    for key in json_splits(path, SPLITS):
        found.setdefault(SPLITS[key.lower()], []).append(Part(path, key))
    return found or {split: [Part(path)]}


def _in_memory(data: object) -> tuple[str, Splits]:
    from datasets import IterableDataset, IterableDatasetDict

    is_stream = isinstance(data, (IterableDataset, IterableDatasetDict))
    if isinstance(data, Mapping) and data and not is_stream:  # a DatasetDict is one
        parts = {str(split): as_dataset(part, name=f"data_path[{split!r}]") for split, part in data.items()}
        return "the datasets", {split: lambda part=part: part for split, part in parts.items()}
    if is_stream:
        raise DataError(
            "data_path is a stream, and a run reads all rows before it trains; give a datasets.Dataset, or the stream "
            "to DistillationSFTTrainer."
        )
    accepted = f"a file, a folder, a Hub dataset, {KNOWN_TYPES}"
    rows = as_dataset(data, name="data_path", accepted=accepted)
    return "the dataset", {"train": lambda: rows}


def _folder(folder: Path, name: str) -> Splits:
    """Return the splits of a folder: one that `save_to_disk` wrote, or data files sorted by their names."""
    from datasets import load_from_disk

    saved = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    if saved or (folder / "dataset_dict.json").is_file():
        try:
            return _in_memory(load_from_disk(str(folder)))[1]
        except Exception as error:
            raise DataError(
                f"data_path {name} is a saved dataset that cannot be read ({first_line(error)})."
            ) from error
    files: dict[str, list[Part]] = {}
    for path in _data_files(folder, set()):
        for split, parts in _splits_of_file(path, _split_of(path.relative_to(folder))).items():
            files.setdefault(split, []).extend(parts)
    if not files:
        raise DataError(f"data_path {name} is a folder without a data file; {ACCEPTED}; sub-folders name a split.")
    return {split: partial(_load_files, parts) for split, parts in files.items()}


def _data_files(folder: Path, read: set[Path]) -> list[Path]:
    """Return the data files of a folder, and of sub-folders named by a split or `data`, in order.

    A folder is read once, however many links lead to it: `read` has those that were.
    """
    found: list[Path] = []
    place = folder.resolve()
    if place in read:
        return found
    read.add(place)
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        if path.is_dir():
            if _is_read(path.name):
                found += _data_files(path, read)
        elif path.suffix.lower() in SUFFIXES and path.name not in BOOKKEEPING:
            check_ordinary(path, name=f"{str(path)!r} in the folder of data_path", error=DataError)
            found.append(path)
    return found


def is_read_with(folder: Path, path: Path) -> bool:
    """Whether a data file at a path, which need not be there yet, is read with a folder; both are resolved."""
    return path.is_relative_to(folder) and all(map(_is_read, path.relative_to(folder).parent.parts))


def _is_read(name: str) -> bool:
    """Whether a sub-folder of this name is read with its folder."""
    return not name.startswith((".", "_")) and (name.lower() == "data" or bool(set(_words(name)) & set(SPLITS)))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _split_of(path: Path) -> str:
    """Return the split that a path names, by its first word that is one; else "train"."""
    words = _words(" ".join(path.with_suffix("").parts))
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _load_files(parts: list[Part]) -> Dataset:
    texts = [part for part in parts if part.path.suffix.lower() in TEXTS]
    read = [read_texts(texts)] if texts else []
    for suffix in BINARIES:
        same = [part.path for part in parts if part.path.suffix.lower() == suffix]
        if same:
            read.append(load_arrow_files(suffix[1:], same))
    return _joined(read)


def _joined(datasets: list[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    if len(datasets) == 1:
        return datasets[0]
    try:
        return concatenate_datasets(datasets)
    except Exception:  # a column has other types in one of them; its values are read as they are
        return _as_they_are(datasets)


def _as_they_are(datasets: list[Dataset]) -> Dataset:
    def rows() -> Placed:
        before = 0
        for dataset in datasets:
            columns = {name: plain_values(dataset.data[name], kind) for name, kind in dataset.features.items()}
            places = columns.pop(PLACE, [f"row {i}" for i in range(before + 1, before + len(dataset) + 1)])
            for place, values in zip(places, zip(*columns.values(), strict=True), strict=True):
                yield place, dict(zip(columns, values, strict=True))
            before += len(dataset)

    found = read_placed(rows)
    assert found is not None
    return found


def _names(spec: str) -> list[str]:
    """Return the split names in "train[:90%]+test"."""
    return [part.split("[")[0].strip() for part in spec.split("+")]


def _split_named(name: str, splits: Splits) -> str | None:
    """Return the split of that name, or the one that means the same ("val" is "validation")."""
    if name in splits:
        return name
    return next((split for split in splits if SPLITS.get(name, name) == SPLITS.get(split, split)), None)


def _select(name: str, splits: Splits, spec: str, setting: str) -> Dataset:
    """Read the split, slice or sum of splits that `spec` asks for."""
    from datasets import ReadInstruction, concatenate_datasets

    found = {wanted: _split_named(wanted, splits) for wanted in _names(spec)}
    for wanted, split in found.items():
        if split is None:
            raise NoSplit(_no_split(name, wanted, splits, setting))
    parts = {wanted: splits[str(split)]() for wanted, split in found.items()}
    if spec in parts:
        return parts[spec]
    try:
        pieces = ReadInstruction.from_spec(spec).to_absolute({wanted: len(part) for wanted, part in parts.items()})
        chosen = [parts[p.splitname].select(range(p.from_, p.to)) for p in pieces if p.from_ < p.to]
    except (ValueError, AssertionError, AttributeError) as error:
        raise DataError(f"{setting} is {spec!r}, which is not a split or slice ({first_line(error)}).") from error
    if not chosen:
        raise DataError(f"{setting} is {spec!r}, which leaves no row of {name}; take a larger slice.")
    return concatenate_datasets(chosen)


def _no_split(name: str, wanted: str, splits: Splits, setting: str) -> str:
    if list(splits) == ["train"]:
        return (
            f"{setting} is {wanted!r}, but {name} has 'train' only; give slices such as --train-split 'train[:90%]' "
            "--valid-split 'train[90%:]', or a folder with train and validation files."
        )
    there = ", ".join(map(repr, splits))
    flag = "--" + setting.replace("_", "-")
    return f"{setting} is {wanted!r}, but {name} has {there}.{nearest(wanted, splits)} Name one with {flag}."


def _from_hub(
    name: str, train_split: str, valid_split: str | None, config_name: str | None
) -> tuple[Dataset, Dataset | None]:
    from datasets import load_dataset

    loaded = []
    for split in (train_split, valid_split):
        try:
            found = None if split is None else load_dataset(name, config_name, split=split)  # nosec B615  # rows, no code
            loaded.append(found)
            _refuse_leftover(loaded[0])
        except Exception as error:
            kind = NoSplit if "Unknown split" in str(error) else DataError
            raise kind(
                f"data_path {name!r}: no such file or folder here, and no Hub dataset could be loaded "
                f"({first_line(error)}); check the name, split and configuration, or give a file."
            ) from error
    return loaded[0], loaded[1]


def _refuse_leftover(loaded: Dataset) -> None:
    """Refuse what `datasets` still has in its cache of some local folder of that name; a commit has 40 digits."""
    files = [Path(file["filename"]) for file in loaded.cache_files]
    if files and re.fullmatch("[0-9a-f]{16}", files[0].parent.name):
        raise DataError("the cache has only a copy of another local folder of that name")
