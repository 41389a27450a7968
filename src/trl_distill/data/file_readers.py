"""Text files (json, jsonl, csv, tsv, txt) to Arrow: each row unchanged, with its line number.

Arrow's own readers guess types: text that looks like a date becomes a timestamp, `null` in a csv becomes missing, a
column of mixed values is refused. Here a value keeps the type that its file gives it, so that bad rows can be counted.
"""

from __future__ import annotations

import atexit
import codecs
import csv
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DataError
from .atomic_file import replacing
from .json_reader import CONVERSATIONS, DOCUMENTS, LINES, Placed, json_rows
from .row_faults import FAULTS, PACKED, PLACE, Cells, UnreadableRow, check_names

__all__ = ["CONVERSATIONS", "PLACE", "TEXTS", "Part", "cache_folder", "read_placed", "read_texts", "scratch_file"]

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

TABLES = {".csv": ",", ".tsv": "\t"}
DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
TEXTS = (*LINES, *DOCUMENTS, *TABLES, ".txt")
HEAD = 4096  # bytes in which UTF-16 text shows itself
IN_MEMORY = 64 * 1024 * 1024  # bytes of files up to which no copy is written to the cache
BATCH = 1000
SPARSE = 50  # a column is sparse if fewer than one row in so many has it
MOST_CELLS = 100_000  # empty cells that sparse columns may have together
Batch = dict[str, list[Any]]


class Part(NamedTuple):
    """A file, or one split of a JSON file that holds several."""

    path: Path
    split: str | None = None


def read_texts(parts: list[Part]) -> Dataset:
    """Read text files into one dataset.

    Args:
        parts: Files that end in one of `TEXTS`, in the order in which their rows are wanted.

    Returns:
        Rows with the columns of the files. A column of objects, or whose values are of several types, is
        `datasets.Json`: its values come back as they were, with no empty keys from other rows. The column `PLACE` has
        each row's line; a single JSON list has none. `FAULTS` has what is wrong with single values, if anything is.
        If rows have so many keys of their own that a table would be almost empty, `PACKED` has them as one object.

    Raises:
        DataError: A file that cannot be read or is malformed (with its line), or that has no rows.
    """
    from datasets import Dataset

    parts = [Part(part.path.absolute(), part.split) for part in parts]
    cached = _cache_file(parts)
    if cached is not None and cached.is_file():
        return Dataset.from_file(str(cached))

    def rows() -> Placed:
        for part in parts:
            place = f"{part.path.name} " if len(parts) > 1 else ""
            yield from ((place + where, row) for where, row in _rows_of(part))

    found = read_placed(rows, cached)
    if found is None:
        names = ", ".join(part.path.name for part in parts[:3])
        raise DataError(f"{names} has no rows; give a file with at least one.")
    return found


def read_placed(rows: Callable[[], Placed], cached: Path | None = None) -> Dataset | None:
    """Return rows as a dataset in the form of `read_texts`, or None if there are none.

    Args:
        rows: Yields each row with its place; called again for each pass.
        cached: The file that the dataset is written to; None keeps it in memory.
    """
    from datasets import Json

    features = _features(rows())
    if features is None:
        return None
    while True:
        try:
            return _dataset_of(rows, features, cached)
        except _TypeMismatch as error:
            features[str(error)] = Json()


class _TypeMismatch(Exception):
    """A column holds a value that its type does not: an integer, before later rows with floats, that is too large."""


def _rows_of(part: Part) -> Placed:
    path, kind = part.path, part.path.suffix.lower()
    try:
        with path.open("rb") as file:
            if b"\0" in file.read(HEAD):
                raise DataError(f"{path} is not UTF-8 text: it has zero bytes, as UTF-16 does; save it as UTF-8.")
        if kind in TABLES:
            yield from _table_rows(path)
        else:
            yield from _text_rows(path) if kind == ".txt" else json_rows(path, part.split)
    except UnicodeDecodeError as error:
        utf16 = error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        reason = "it is UTF-16" if utf16 else error.reason
        raise DataError(f"{path} is not UTF-8 text ({reason}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from None


def _text_rows(path: Path) -> Placed:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {"text": line.rstrip("\n")}


def _table_rows(path: Path) -> Placed:
    """Yield the rows of a csv or tsv; every cell is text, and cells that a short row lacks are None."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB refuses long documents
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True)
        start = 1
        try:
            header = [name.strip() or f"column {i}" for i, name in enumerate(next(reader, []), 1)]
            check_names(header, ours=False)
            faults = _header_faults(path, header)
            start = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    raise DataError(
                        f"{path}, line {start}, has {len(cells)} cells but the header has {len(header)}; put cells "
                        "that hold the delimiter in double quotes."
                    )
                if cells:
                    cells += [None] * (len(header) - len(cells))  # type: ignore[list-item]
                    yield f"line {start}", {**dict(zip(header, cells, strict=True)), **faults}
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}, is not valid csv ({error}); close quotes, and double those inside a cell."
            ) from None
        except UnreadableRow as error:
            raise DataError(f"{path} {error}.") from None


def _header_faults(path: Path, header: list[str]) -> dict[str, str]:
    """Return the faults of each row of a table that names columns twice; refuse one with another delimiter."""
    wanted = TABLES[path.suffix.lower()]
    other = next((d for d in DELIMITERS if len(header) == 1 and d != wanted and d in header[0]), None)
    if other is not None:
        raise DataError(
            f"{path} has {DELIMITERS[other]} ({other!r}) between its columns, and {path.suffix} means "
            f"{DELIMITERS[wanted]}; save it with {DELIMITERS[wanted]}."
        )
    twice = {name: "two columns have this name" for name, count in Counter(header).items() if count > 1}
    return {FAULTS: json.dumps(twice)} if twice else {}


def _batches(rows: Placed, columns: Collection[str]) -> Iterator[Batch]:
    """Yield columns of up to `BATCH` rows; a value that a row lacks is None, and those of no column are packed."""
    while batch := list(islice(rows, BATCH)):
        found: Batch = {PLACE: [row.get(PLACE) or place for place, row in batch]}
        found |= {name: [row.get(name) for _, row in batch] for name in columns if name not in found}
        if PACKED in columns:
            packed = [{n: v for n, v in row.items() if n not in columns and v is not None} for _, row in batch]
            both = zip(batch, packed, strict=True)
            found[PACKED] = [{**(row.get(PACKED) or {}), **more} or None for (_, row), more in both]
        yield found


def _features(rows: Placed) -> Features | None:
    """Return the type of each column, `Json` if its values are objects or of several types; None without rows."""
    import datasets
    import pyarrow as pa

    known: dict[str, pa.DataType | None] = {}
    counts: Counter[str] = Counter()
    total, lines = 0, False
    while batch := list(islice(rows, BATCH)):
        total += len(batch)
        lines = lines or not all((row.get(PLACE) or place).startswith("row ") for place, row in batch)
        for name, values in _values_by_column(batch).items():
            counts[name] += len(values)
            if known.get(name, pa.null()) is not None:
                known[name] = _common_type(known.get(name, pa.null()), values)
    if not total:
        return None
    known.pop(PLACE, None)
    sparse = {name for name in known if counts[name] * SPARSE < total} - {FAULTS, PACKED}
    if len(sparse) * total > MOST_CELLS:
        known = {name: kind for name, kind in known.items() if name not in sparse} | {PACKED: None}
    if FAULTS in known:
        known[FAULTS] = known.pop(FAULTS)  # the last column, whichever row has the first fault
    schema = pa.schema([(n, pa.string() if pa.types.is_null(t) else t) for n, t in known.items() if t is not None])
    plain = datasets.Features.from_arrow_schema(schema)
    columns = {name: plain.get(name, datasets.Json()) for name in known}
    return datasets.Features({**columns, PLACE: datasets.Value("string")} if lines else columns)


def _values_by_column(batch: list[tuple[str, Cells]]) -> Batch:
    """Return the values of some rows by column, without those that a row lacks."""
    found: Batch = {}
    for _, row in batch:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def _common_type(known: pa.DataType, values: list[object]) -> pa.DataType | None:
    """Return the Arrow type that holds what is `known` and new values as they are, or None when there is none."""
    import pyarrow as pa

    try:
        new = pa.array(values).type
        if pa.types.is_null(new):
            return known
        if _has_objects(new):
            return None  # each would get the keys of all others, and lose none of its own empty ones
        if not pa.types.is_null(known) and known != new:
            pair = [pa.schema([("x", kind)]) for kind in (known, new)]
            new = pa.unify_schemas(pair, promote_options="permissive").field("x").type
        pa.array(values, new)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    return new


def _has_objects(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) or (pa.types.is_list(kind) and _has_objects(kind.value_type))


def _cache_file(parts: list[Part]) -> Path | None:
    """Return where the Arrow copy of these files, as they are now, belongs in the cache; None if they are small."""
    import datasets

    try:
        stats = [part.path.stat() for part in parts]
    except OSError:
        return None  # reading it will say why
    if sum(stat.st_size for stat in stats) <= IN_MEMORY:
        return None
    state = [(str(part.path), part.split, s.st_size, s.st_mtime_ns) for part, s in zip(parts, stats, strict=True)]
    key = hashlib.sha256(repr(("2", state)).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE, "trl_distill", f"{key}.arrow")


def _dataset_of(rows: Callable[[], Placed], features: Features, cached: Path | None) -> Dataset:
    import datasets
    import pyarrow as pa

    if cached is None:
        sink = pa.BufferOutputStream()
        _write(rows, features, sink)
        buffer = sink.getvalue()
        table = datasets.table.InMemoryTable.from_buffer(buffer)
        # datasets would pickle the type of each column for a fingerprint, which takes seconds for thousands of them
        return datasets.Dataset(table, fingerprint=hashlib.sha256(buffer).hexdigest()[:16])
    cached.parent.mkdir(parents=True, exist_ok=True)
    with replacing(cached) as partial, pa.OSFile(str(partial), "wb") as sink:  # several ranks may write at once
        _write(rows, features, sink)
    return datasets.Dataset.from_file(str(cached))


def _write(rows: Callable[[], Placed], features: Features, sink: pa.NativeFile) -> None:
    import datasets
    import pyarrow as pa

    schema = features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in _batches(rows(), features):
            arrays = []
            for field in schema:
                values = batch[field.name]
                if isinstance(features[field.name], datasets.Json):
                    values = [None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values]
                try:
                    arrays.append(pa.array(values, field.type))
                except pa.ArrowException:
                    raise _TypeMismatch(field.name) from None
            stream.write_batch(pa.record_batch(arrays, schema=schema))


def cache_folder() -> str:
    """Return the folder in which `datasets` keeps what it reads, created and written to.

    Raises:
        DataError: It cannot be.
    """
    import datasets

    folder = str(datasets.config.HF_DATASETS_CACHE)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise DataError(
            f"the cache of datasets, {folder!r}, cannot be written ({error.strerror}); set HF_HOME to a folder that "
            "can."
        ) from error
    return folder


def scratch_file() -> str:
    """Return a new file name in a folder of the datasets cache that is deleted when Python ends."""
    return os.path.join(_scratch_folder(os.getpid()), f"{uuid.uuid4().hex}.arrow")


@cache
def _scratch_folder(pid: int) -> str:
    """Make a folder for each process: a forked one must not lose its parent's."""
    folder = tempfile.mkdtemp(prefix=f"trl-distill-{pid}-", dir=cache_folder())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
