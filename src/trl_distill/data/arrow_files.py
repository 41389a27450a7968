"""Parquet and Arrow files, which `datasets` copies to its cache, unless the cache's disk has no room for all of them.

5 MB of either may hold 50 GB of equal rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, first_line
from .file_readers import cache_folder
from .full_disk import free_bytes, size_text

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

ROWS = 64  # that are unpacked at once, as each may be a long text that the file has only once


def load_arrow_files(kind: str, paths: list[Path]) -> Dataset:
    """Return the rows of files.

    Args:
        kind: "parquet" or "arrow".
        paths: Files of this kind.

    Raises:
        DataError: A file cannot be read, all are without rows, or the disk of the cache has no room for them.
    """
    from datasets import load_dataset, load_dataset_builder

    files, folder = ", ".join(map(str, paths[:3])), cache_folder()
    try:
        columns = _readable_columns(paths[0]) if kind == "parquet" else {}
        local = [str(path) for path in paths]
        if not os.path.exists(load_dataset_builder(kind, data_files=local, **columns).cache_dir):  # nosec B615
            _check_space(files, kind, paths, folder)
        return load_dataset(kind, data_files=local, split="train", **columns)  # nosec B615  # no download
    except DataError:
        raise
    except Exception as error:
        if "corresponds to no data" in str(error):  # how datasets says that there are no rows
            raise DataError(f"{files} has no rows; give a file with at least one.") from None
        raise DataError(f"{files} cannot be read as {kind} ({first_line(error.__cause__ or error)}).") from error


def _readable_columns(path: Path) -> dict[str, Any]:
    """Return the columns of a parquet file to read, without types that `datasets` does not support."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    features, schema = Features(), pq.read_schema(path)
    for field in schema:
        with suppress(ValueError, TypeError):
            features |= Features.from_arrow_schema(pa.schema([field]))
    return {} if len(features) == len(schema) else {"columns": list(features), "features": features}


def _check_space(files: str, kind: str, paths: list[Path], folder: str) -> None:
    free, size = free_bytes(Path(folder)), 0
    for path in paths:
        for rows in _of_parquet(path) if kind == "parquet" else _of_arrow(path):
            size += rows.nbytes
            if size > free:
                raise DataError(
                    f"{files} unpacks to more than the {size_text(free)} that are free on the disk of the cache of "
                    f"datasets, {folder!r}; make room, set HF_HOME to a folder on another disk, or give fewer rows."
                )


def _of_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROWS, use_threads=False)


def _of_arrow(path: Path) -> Iterator[pa.RecordBatch | pa.Table]:
    import pyarrow as pa
    from datasets import Features

    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)
            batches = iter(reader)
        except pa.ArrowInvalid:
            source.seek(0)
            reader = pa.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        if not any(map(_refers, reader.schema.types)):
            yield from batches
            return
        plain = Features.from_arrow_schema(reader.schema).arrow_schema
        for batch in batches:
            for start in range(0, len(batch), ROWS):
                yield pa.Table.from_batches([batch.slice(start, ROWS)]).cast(plain)


def _refers(kind: pa.DataType) -> bool:
    """Whether values of a type are references to others, somewhere in it."""
    import pyarrow as pa

    return pa.types.is_dictionary(kind) or any(_refers(kind.field(i).type) for i in range(kind.num_fields))
