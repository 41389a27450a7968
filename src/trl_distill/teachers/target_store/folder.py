"""A folder of stored targets: Parquet shards, a tokenizer, the completions and a manifest with all their checksums.

store/
  manifest.json              what the targets were made with, and the checksum of each file; rewritten after each shard
  shard-00000.parquet ...    a row for each sequence: its key, its completion and the teacher's targets
  head.safetensors           the teacher's LM head; only if the targets are its hidden states
  completions.jsonl          what the teacher wrote, see `CompletionStore`; only if it wrote anything
  tokenizer/                 the teacher's

A file is written under a temporary name, flushed and renamed: it is complete or not there. A shard that the manifest
does not name, because a kill came in between, is made again, from the batches of it that are in `.parts/`. Nothing here
knows a model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...data.atomic_file import remove, write_bytes
from ...data.folder_lock import folder_lock
from ...data.folder_names import file_in, is_inside, link_to
from ...errors import TeacherError
from .manifest_shape import misshapen

FORMAT = 2
MANIFEST, COMPLETIONS, TOKENIZER, HEAD = "manifest.json", "completions.jsonl", "tokenizer", "head.safetensors"
DATE = "chat_template_date.txt"  # see `TemplateDate`
PARTS = ".parts"
REPAIR = "make it again with the same `aitraining teach` command and --repair"
Manifest: TypeAlias = dict[str, Any]  # a JSON object


@dataclass(frozen=True)
class TargetRow:
    """One sequence's targets, at n tokens of a completion.

    Attributes:
        key: See `sequence_key`.
        completion: All of the completion's token ids; the first has no target if the prompt is empty.
        arrays: The arrays of its format by name, [n, width] each.
    """

    key: bytes
    completion: np.ndarray
    arrays: Mapping[str, np.ndarray]

    @property
    def tokens(self) -> int:
        return len(next(iter(self.arrays.values())))


def sequence_key(prompt: Sequence[int], completion: Sequence[int]) -> bytes:
    """Return the 16 bytes by which a teacher's prompt and completion (token ids) are found."""
    text = json.dumps([[int(i) for i in prompt], [int(i) for i in completion]], separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:16]


class TargetFolder:
    """The files of a store."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder).expanduser()

    def __str__(self) -> str:
        return f"teacher_store {str(self.path)!r}"

    def locked(self) -> AbstractContextManager[None]:
        """Hold the store for one process that writes it; see `folder_lock`. Readers of a finished one do not."""
        return folder_lock(self.path, what=str(self), instead="another folder for the store")

    @property
    def begun(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return self.begun and bool(self.manifest().get("complete"))

    @property
    def is_whole(self) -> bool:
        """Whether everything was written, and no completions are to be written again (`discard_damaged`)."""
        return self.complete and (COMPLETIONS not in self.manifest()["files"] or (self.path / COMPLETIONS).is_file())

    def manifest(self) -> Manifest:
        """Return the manifest.

        Raises:
            TeacherError: It is missing, damaged, of another format or shape, or names files outside the store.
        """
        if not self.begun:
            raise TeacherError(f"{self} holds no {MANIFEST}; make one with `aitraining teach`.")
        try:
            read = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            found = read["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise TeacherError(f"{self}: {MANIFEST} is damaged; {REPAIR}.") from None
        if found != FORMAT:
            raise TeacherError(f"{self} has format {found!r:.40} and this version reads {FORMAT}; make a new store.")
        if _checksum_of(read) != read.get("checksum"):
            raise TeacherError(f"{self}: {MANIFEST} is damaged; {REPAIR}.")
        wrong = misshapen(read)
        if wrong is not None:
            raise TeacherError(f"{self}: {MANIFEST} has no {wrong!r} of the form that a store has; {REPAIR}.")
        outside = next((name for name in files_of(read) if not is_inside(name)), None)
        if outside is not None:
            raise TeacherError(f"{self}: {MANIFEST} names {outside!r:.100}, a file outside the store; {REPAIR}.")
        return dict(read)

    def write_manifest(self, content: Manifest) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**content, "checksum": _checksum_of(content)}, indent=1, sort_keys=True)
        write_bytes(self.path / MANIFEST, text.encode() + b"\n")

    def write_shard(self, name: str, rows: Sequence[TargetRow], *, vocabulary: int) -> str:
        """Write a shard and return its checksum.

        Token ids are below `vocabulary`; 65,536 and less are stored in two bytes.
        """
        write_bytes(self.path / name, _parquet(_table(rows, vocabulary)))
        return self.checksum(name)

    def write_part(self, shard: str, number: int, rows: Sequence[TargetRow], *, vocabulary: int) -> None:
        """Keep a batch of a shard that is not complete yet."""
        path = self._part(shard, number)
        if path.parent.is_symlink():
            path.parent.unlink()
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, _parquet(_table(rows, vocabulary)))

    def read_part(self, shard: str, number: int) -> list[TargetRow]:
        """Return a batch that was kept; nothing if there is none, or it is damaged."""
        try:
            return rows_of(pq.read_table(self._part(shard, number), page_checksum_verification=True))
        except (OSError, pa.ArrowException):
            return []

    def discard_parts(self, shard: str = "") -> None:
        """Delete the batches of a shard, or of all."""
        parts = self.path / PARTS
        if not shard or parts.is_symlink():
            remove(parts)
            return
        for path in parts.glob(f"{shard}*"):
            path.unlink()

    def _part(self, shard: str, number: int) -> Path:
        return self.path / PARTS / f"{shard}.{number:03d}"

    def checksum(self, name: str) -> str:
        """Return the sha256 of a file; an empty text if it cannot be read, or only through a link."""
        try:
            with file_in(self.path, name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            return ""

    def damaged(self, manifest: Manifest) -> list[str]:
        """Return the files that are missing, or whose content is not what the manifest says."""
        return [name for name, expected in files_of(manifest).items() if self.checksum(name) != expected]

    def discard_damaged(self) -> list[str]:
        """Delete the files that are not what the manifest says, and return their names; of a link, the link.

        A damaged manifest goes too: which shards are whole is then not known any more.

        Raises:
            TeacherError: A folder is in the place of one; nothing is deleted then.
        """
        try:
            damaged = self.damaged(self.manifest()) if self.begun else []
        except TeacherError:
            damaged = [MANIFEST]
        for name in damaged:
            self._check_is_no_folder(name)
        for name in damaged:
            (link_to(self.path, name) or self.path / name).unlink(missing_ok=True)
        return damaged

    def check(self, manifest: Manifest) -> None:
        for name in self.damaged(manifest):
            self._check_is_no_folder(name)
            what = "differs from its checksum" if (self.path / name).is_file() else "is missing"
            what = what if link_to(self.path, name) is None else "is a link, or in a linked folder"
            raise TeacherError(f"{self}: {name} is damaged: it {what}; {REPAIR}.")

    def _check_is_no_folder(self, name: str) -> None:
        """Raise TeacherError for a folder in the place of a file, which may hold what nobody wants deleted."""
        if (self.path / name).is_dir() and link_to(self.path, name) is None:
            raise TeacherError(f"{self}: {name} is a folder in the place of a file; remove it, and {REPAIR}.")

    def rows(self, manifest: Manifest) -> TargetTable:
        return TargetTable([str(self.path / shard["name"]) for shard in manifest["shards"]])


class TargetTable:
    """Rows of shards by key, memory-mapped: datasets unpacks the shards into its cache once."""

    def __init__(self, paths: Sequence[str]) -> None:
        from datasets import Dataset

        from ...data.file_readers import cache_folder
        from ...data.streaming import without_dataset_bars

        if not paths:
            self._table, self._places = None, {}
            return
        cache_folder()
        with without_dataset_bars():
            self._table = Dataset.from_parquet(list(paths)).data
        self._places = {key: i for i, key in enumerate(self._table.column("key").to_pylist())}

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def any(self) -> TargetRow:
        """Return a row, to tell what rows look like."""
        row = self.get(next(iter(self._places)))
        assert row is not None
        return row

    def get(self, key: bytes) -> TargetRow | None:
        """Return a row, whose arrays are views of the file; None if there is none."""
        place = self._places.get(key)
        return None if place is None or self._table is None else _row_at(self._table, place)


def rows_of(table: pa.Table) -> list[TargetRow]:
    return [_row_at(table, place) for place in range(table.num_rows)]


def _row_at(table: pa.Table, place: int) -> TargetRow:
    cells = {name: table.column(name)[place] for name in table.column_names}
    key, tokens = (cells.pop(name).as_py() for name in ("key", "tokens"))
    flat = {name: cell.values.to_numpy(zero_copy_only=False) for name, cell in cells.items()}
    completion = flat.pop("completion")
    # arrays lie column by column
    arrays = {name: own.reshape(-1, tokens).T if tokens else own.reshape(0, 1) for name, own in flat.items()}
    return TargetRow(key, completion, arrays)


def files_of(manifest: Manifest) -> dict[str, str]:
    return {shard["name"]: shard["sha256"] for shard in manifest["shards"]} | manifest["files"]


def _checksum_of(content: Manifest) -> str:
    text = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _table(rows: Sequence[TargetRow], vocabulary: int) -> pa.Table:
    """Return rows as a table; two-dimensional arrays lie column by column, so that similar values are adjacent."""
    ids = np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32)
    columns = {
        "key": pa.array([row.key for row in rows], pa.binary(16)),
        "tokens": pa.array([row.tokens for row in rows], pa.int32()),
        "completion": pa.array([row.completion.astype(ids) for row in rows]),
    }
    for name in rows[0].arrays:
        parts = [row.arrays[name].T.ravel() for row in rows]
        columns[name] = pa.array([part.astype(ids) if part.dtype == np.int64 else part for part in parts])
    return pa.table(columns)


def _parquet(table: pa.Table) -> pa.Buffer:
    """Return a table as a file: integers dictionary-encoded, floats split by byte, both compressed."""
    lists = [field for field in table.schema if pa.types.is_list(field.type)]
    floats = [f"{f.name}.list.element" for f in lists if pa.types.is_floating(f.type.value_type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=9,
        use_dictionary=[f"{f.name}.list.element" for f in lists if not pa.types.is_floating(f.type.value_type)],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()
