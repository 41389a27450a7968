"""Files of text (json, jsonl, csv, tsv, txt) to Arrow: each row as it is, with the place it stands at.

Arrow's own readers guess: text that looks like a date becomes a timestamp, `null` in a csv becomes missing, a column
of mixed values is refused. Here a value keeps the type that its file gives it, so that bad rows can be counted.
"""

from __future__ import annotations

import atexit
import csv
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, Features

PLACE = "__place__"  # column that says where a row stands, for example "line 7"
LINES, DOCUMENTS, TABLES = (".jsonl", ".ndjson"), (".json",), {".csv": ",", ".tsv": "\t"}
TEXTS = (*LINES, *DOCUMENTS, *TABLES, ".txt")
CONVERSATIONS = ("messages", "conversations")
IN_MEMORY = 64 * 1024 * 1024  # bytes of files up to which no copy is written to the cache
BATCH = 1000

Placed = Iterator[tuple[str, dict[str, Any]]]


def read_texts(paths: list[Path]) -> Dataset:
    """Read text files into one dataset.

    Args:
        paths: Files that end in one of `TEXTS`, in the order in which their rows are wanted.

    Returns:
        Rows with the columns of the files. A column whose values are of several types is `datasets.Json`: its values
        come back as they were. The column `PLACE` tells each row's line; a single JSON list has none.

    Raises:
        DataError: A file that cannot be read or is malformed (with its line), or that has no rows.
    """
    from datasets import Dataset, Json

    paths = [p.absolute() for p in paths]
    cached = _cache_file(paths)
    if cached is not None and cached.is_file():
        return Dataset.from_file(str(cached))

    def rows() -> Placed:
        for path in paths:
            place = f"{path.name} " if len(paths) > 1 else ""
            yield from ((place + where, row) for where, row in _guarded(path))

    features = _features(_batches(rows()))
    if features is None:
        raise DataError(f"{', '.join(p.name for p in paths[:3])} has no rows; give a file with at least one.")
    while True:
        try:
            return _written(rows, features, cached)
        except _Unfit as error:
            features[str(error)] = Json()


class _Unfit(Exception):
    """A column holds a value that its type does not: an integer, before later rows with floats, that is too large."""


def _guarded(path: Path) -> Placed:
    """Yield a file's rows, and turn what can go wrong while reading into one sentence."""
    reader = _table if path.suffix.lower() in TABLES else _text if path.suffix.lower() == ".txt" else _json
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the file and its permissions.") from None


def _text(path: Path) -> Placed:
    """Yield one row per line that is not empty."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"line {number}", {"text": line.rstrip("\n")}


def _table(path: Path) -> Placed:
    """Yield the rows of a csv or tsv; every cell is text, and cells that a short row lacks are None."""
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB refuses long documents
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=TABLES[path.suffix.lower()], strict=True)
        start = 1
        try:
            header = [name.strip() or f"column {i}" for i, name in enumerate(next(reader, []), 1)]
            _check_header(path, header)
            start = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    raise DataError(
                        f"{path}, line {start}, has {len(cells)} cells but the header has {len(header)}; put cells "
                        "that hold the delimiter in double quotes."
                    )
                if cells:
                    cells += [None] * (len(header) - len(cells))  # type: ignore[list-item]
                    yield f"line {start}", dict(zip(header, cells, strict=True))
                start = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, line {start}, is no valid csv ({error}); close quotes, and double those inside a cell."
            ) from None


def _check_header(path: Path, header: list[str]) -> None:
    """Refuse two columns of one name."""
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice; rename one of them in its first line.")


def _json(path: Path) -> Placed:
    """Yield the rows of a JSON list, of JSON lines, or of one JSON object."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        lines = path.suffix.lower() in LINES or (_parses(first) and any(line.strip() for line in file))
    if lines and not first.lstrip().startswith("["):
        yield from _json_lines(path)
    elif first:
        yield from _json_document(path)


def _parses(text: str) -> bool:
    """Whether a text is JSON by itself."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _json_lines(path: Path) -> Placed:
    """Yield one row per line that is not empty."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.rstrip())
            except ValueError as error:
                raise DataError(_malformed(path, number, error)) from None
            yield f"line {number}", _row(value)


def _json_document(path: Path) -> Placed:
    """Yield the rows of a file that is one JSON value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(_malformed(path, error.lineno, error)) from None
    if isinstance(value, dict):
        value = _unwrapped(value)
    if not isinstance(value, list):
        raise DataError(f"{path} holds a single {type(value).__name__}; give a list of objects or one object a line.")
    for number, row in enumerate(value, 1):
        yield f"row {number}", _row(row)


def _unwrapped(value: dict[str, Any]) -> list[Any]:
    """Return the rows of an object: its one list of objects, its columns, or itself as the only row."""
    lists = [cells for cells in value.values() if isinstance(cells, list) and cells]
    if len(lists) < len(value) or set(value) & {*CONVERSATIONS, "prompt", "completion"}:
        return [value]
    objects = [all(isinstance(cell, dict) for cell in cells) for cells in lists]
    if objects == [True]:
        return lists[0]
    if not any(objects) and len({len(cells) for cells in lists}) == 1:
        return [dict(zip(value, cells, strict=True)) for cells in zip(*lists, strict=True)]
    return [value]


def _row(value: Any) -> dict[str, Any]:
    """Return a row; a bare value is a row of text, good or bad."""
    return value if isinstance(value, dict) else {"text": value}


def _malformed(path: Path, line: int, error: ValueError) -> str:
    """Say where a JSON file is broken."""
    reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return f"{path}, line {line}, is not valid JSON ({reason}); repair the line or remove it."


def _batches(rows: Placed) -> Iterator[dict[str, list[Any]]]:
    """Yield columns of up to `BATCH` rows; a value that a row lacks is None."""
    while batch := list(islice(rows, BATCH)):
        names = dict.fromkeys(chain.from_iterable(row for _, row in batch))
        yield {PLACE: [place for place, _ in batch], **{n: [row.get(n) for _, row in batch] for n in names}}


def _features(batches: Iterable[dict[str, list[Any]]]) -> Features | None:
    """Return the type of each column, `Json` where its values have several; None when there are no rows."""
    import datasets
    import pyarrow as pa

    known: dict[str, Any] = {}
    lines = False
    for batch in batches:
        lines = lines or not batch[PLACE][0].startswith("row ")
        for name, values in batch.items():
            if known.get(name, pa.null()) is not None:
                known[name] = _widened(known.get(name, pa.null()), values)
    if not known:
        return None
    known.pop(PLACE)
    schema = pa.schema([(n, pa.string() if pa.types.is_null(t) else t) for n, t in known.items() if t is not None])
    plain = datasets.Features.from_arrow_schema(schema)
    columns = {name: plain.get(name, datasets.Json()) for name in known}
    return datasets.Features({**columns, PLACE: datasets.Value("string")} if lines else columns)


def _widened(known: Any, values: list[Any]) -> Any:
    """Return the Arrow type that holds what is `known` and new values, or None when there is none."""
    import pyarrow as pa

    try:
        new = pa.array(values).type
        if pa.types.is_null(new):
            return known
        if not pa.types.is_null(known) and known != new:
            pair = [pa.schema([("x", kind)]) for kind in (known, new)]
            new = pa.unify_schemas(pair, promote_options="permissive").field("x").type
        pa.array(values, new)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    return new


def _cache_file(paths: list[Path]) -> Path | None:
    """Return where the Arrow copy of these files, as they are now, belongs in the cache; None where they are small."""
    import datasets

    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None  # reading it will say why
    if sum(stat.st_size for stat in stats) <= IN_MEMORY:
        return None
    state = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in zip(paths, stats, strict=True)]
    key = hashlib.sha256(repr(("1", state)).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE, "trl_distill", f"{key}.arrow")


def _written(rows: Callable[[], Placed], features: Features, cached: Path | None) -> Dataset:
    """Write the rows as Arrow, to a file of the cache or, without one, in memory."""
    import datasets
    import pyarrow as pa

    if cached is None:
        sink = pa.BufferOutputStream()
        _write(rows, features, sink)
        return datasets.Dataset.from_buffer(sink.getvalue())
    cached.parent.mkdir(parents=True, exist_ok=True)
    partial = cached.with_suffix(f".{uuid.uuid4().hex}")  # several ranks may write at once
    try:
        with pa.OSFile(str(partial), "wb") as sink:
            _write(rows, features, sink)
        os.replace(partial, cached)
    finally:
        partial.unlink(missing_ok=True)
    return datasets.Dataset.from_file(str(cached))


def _write(rows: Callable[[], Placed], features: Features, sink: Any) -> None:
    """Write all rows to an Arrow stream."""
    import datasets
    import pyarrow as pa

    schema = features.arrow_schema
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in _batches(rows()):
            arrays = []
            for field in schema:
                values = batch.get(field.name, [None] * len(batch[PLACE]))
                if isinstance(features[field.name], datasets.Json):
                    values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
                try:
                    arrays.append(pa.array(values, field.type))
                except pa.ArrowException:
                    raise _Unfit(field.name) from None
            stream.write_batch(pa.record_batch(arrays, schema=schema))


def scratch_file() -> str:
    """Return a new file name in a folder of the datasets cache that goes when Python ends."""
    return os.path.join(_scratch_folder(os.getpid()), f"{uuid.uuid4().hex}.arrow")


@cache
def _scratch_folder(pid: int) -> str:
    """Make the folder, one for each process: a forked one must not lose its parent's."""
    import datasets

    os.makedirs(datasets.config.HF_DATASETS_CACHE, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f"trl-distill-{pid}-", dir=datasets.config.HF_DATASETS_CACHE)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
