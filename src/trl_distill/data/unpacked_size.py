"""How large a parquet or arrow file is when it is unpacked: 5 MB of one may hold 50 GB of equal rows.

Sizes come from the metadata, without unpacking anything. Only values that a file stores once and refers to, which no
metadata counts, are read, as references, and only if they might be too many.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

# bytes of a value by its type in parquet, where equal ones take none; of a text its offset alone
WIDTHS = {"BOOLEAN": 1 / 8, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
OFFSET = 4
# parquet's encodings that keep each text as a whole; RLE is that of levels
WHOLE = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY"}
ROWS = 1000  # that are read at once
MAGIC = b"ARROW1"  # of a file; a stream has none
RECORDS, DICTIONARY = 3, 2  # kinds of messages in arrow's Message.fbs


def unpacked_bytes(paths: Sequence[Path], limit: float) -> float:
    """Return the bytes that parquet or arrow files take in the cache of `datasets`.

    Args:
        paths: Files of one kind, which end in `.parquet` or `.arrow`.
        limit: Bytes beyond which it does not matter how many there are.

    Raises:
        ArrowException, OSError, struct.error: A file is broken.
    """
    count = 0.0
    for path in paths:
        left = limit - count
        is_parquet = path.suffix.lower() == ".parquet"
        count += _of_parquet(path, left, small=limit / len(paths)) if is_parquet else _of_arrow(path, left)
    return count


def _of_parquet(path: Path, limit: float, *, small: float) -> float:
    """Return the bytes of a file; those of values that it refers to are not counted if they can only be few."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    count = referring = most = 0.0
    names: dict[str, bool] = {}  # of columns that refer to values, and whether references can be read from all of it
    for chunk in (group.column(column) for group in groups for column in range(metadata.num_columns)):
        values, size = chunk.num_values, chunk.total_uncompressed_size
        least = max(size, values * WIDTHS.get(chunk.physical_type, OFFSET))
        count += least
        if chunk.physical_type.endswith("BYTE_ARRAY") and not WHOLE.issuperset(chunk.encodings):
            readable = "DELTA_BYTE_ARRAY" not in chunk.encodings
            names[chunk.path_in_schema] = readable and names.get(chunk.path_in_schema, True)
            referring += least
            most += values * (size + OFFSET)
    if count > limit or count - referring + most <= small:
        return count
    with pq.ParquetFile(path, read_dictionary=[name for name, readable in names.items() if readable]) as file:
        batches = file.iter_batches(batch_size=ROWS, columns=list(names), use_threads=False)
        return _summed(batches, count - referring, limit)


def _of_arrow(path: Path, limit: float) -> float:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(MAGIC)) == MAGIC
        source.seek(8 if is_file else 0)
        count = float(sum(map(_bytes_of_message, _messages(source))))
        source.seek(0)
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
        if count > limit or not any(map(_refers, reader.schema.types)):
            return count
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        return _summed(batches, 0, limit)


def _messages(source: pa.NativeFile) -> Iterator[pa.ipc.Message]:
    import pyarrow as pa

    while True:
        try:
            yield pa.ipc.read_message(source)
        except EOFError:
            return


def _bytes_of_message(message: pa.ipc.Message) -> int:
    """Return the unpacked bytes of the buffers of a message, from its header, a flatbuffer."""
    header, body = memoryview(message.metadata), message.body

    def number(form: str, at: int) -> int:
        return int(struct.unpack_from(f"<{form}", header, at)[0])

    def field(table: int, index: int) -> int | None:
        """Return where the field of a table is."""
        names = table - number("i", table)
        offset = number("H", names + 4 + 2 * index) if 4 + 2 * index < number("H", names) else 0
        return table + offset if offset else None

    def target(place: int | None) -> int | None:
        return None if place is None else place + number("I", place)

    root = number("I", 0)
    kind, records = field(root, 1), target(field(root, 2))
    if kind is None or records is None or header[kind] not in (RECORDS, DICTIONARY):
        return 0
    if header[kind] == DICTIONARY:
        records = target(field(records, 1))
    buffers = None if records is None else target(field(records, 2))
    if records is None or buffers is None:
        return 0
    packed, total = field(records, 3) is not None, 0
    for index in range(number("I", buffers)):
        start, length = struct.unpack_from("<qq", header, buffers + 4 + 16 * index)
        if packed and length:
            (unpacked,) = struct.unpack_from("<q", memoryview(body), start)
            length = length if unpacked == -1 else unpacked
        total += max(0, length)
    return total


def _summed(batches: Iterable[pa.RecordBatch], count: float, limit: float) -> float:
    """Return a number of bytes, and those of some batches' values; stop at the limit."""
    for batch in batches:
        if count > limit:
            break
        count += sum(map(_bytes_of_values, batch.columns))
    return count


def _refers(kind: pa.DataType) -> bool:
    """Whether values of a type are references to others, somewhere in it."""
    import pyarrow as pa

    return pa.types.is_dictionary(kind) or any(_refers(kind.field(i).type) for i in range(kind.num_fields))


def _bytes_of_values(array: pa.Array) -> int:
    """Return the bytes of an array's values, with those that it refers to as often as it does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.DictionaryArray):
        if not _is_text(array.dictionary.type):
            return int(array.dictionary_decode().nbytes)
        lengths = pc.binary_length(array.dictionary).take(array.indices)
        return OFFSET * len(array) + int(pc.sum(lengths).as_py() or 0)
    if isinstance(array, pa.StructArray):
        return sum(map(_bytes_of_values, array.flatten()))
    if pa.types.is_nested(array.type):
        return OFFSET * len(array) + _bytes_of_values(array.flatten())
    return int(array.nbytes)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(kind) for is_kind in kinds)
