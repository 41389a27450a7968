"""A folder of stored targets: Parquet shards, a tokenizer, the completions and a manifest with all their checksums.

store/
  manifest.json              what the targets were made with, and the checksum of each file; rewritten after each shard
  shard-00000.parquet ...    a row for each sequence: its key, its completion and the teacher's targets
  completions.jsonl          what the teacher wrote, see `store.CompletionStore`; only where it wrote anything
  tokenizer/                 the teacher's

A file is written under a temporary name, flushed and renamed: it is complete or not there. A shard that the manifest
does not name, because a kill came in between, is made again. Numpy and Arrow alone; nothing here knows a model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import TeacherError

FORMAT = 1
MANIFEST, COMPLETIONS, TOKENIZER = "manifest.json", "completions.jsonl", "tokenizer"
REPAIR = "re-make it with the same `aitraining teach` command and --repair"


@dataclass(frozen=True)
class TargetRow:
    """One sequence's targets: n tokens of a completion, k stored tokens each, at m temperatures.

    Attributes:
        key: See `sequence_key`.
        completion: All of the completion's token ids; the first has no target where the prompt is empty.
        token_ids: [n, k], the likeliest first.
        log_probs: [n, k] float16 in nats at T = 1.
        log_normalizers: [n, m] float32.
    """

    key: bytes
    completion: np.ndarray
    token_ids: np.ndarray
    log_probs: np.ndarray
    log_normalizers: np.ndarray


def sequence_key(prompt: Sequence[int], completion: Sequence[int]) -> bytes:
    """Return the 16 bytes by which a teacher's prompt and completion (token ids) are found."""
    text = json.dumps([[int(i) for i in prompt], [int(i) for i in completion]], separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()[:16]


class TargetFolder:
    """The files of a store.

    Args:
        folder: Where they are or will be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()

    def __str__(self) -> str:
        return f"teacher_store {str(self.folder)!r}"

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return (self.folder / MANIFEST).is_file()

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return self.begun and bool(self.manifest().get("complete"))

    def manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            TeacherError: It is missing, damaged or of another format.
        """
        try:
            read = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            found = read["format"]
        except FileNotFoundError:
            raise TeacherError(f"{self} holds no {MANIFEST}; make one with `aitraining teach`.") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise TeacherError(f"{self}: {MANIFEST} is damaged; {REPAIR}.") from None
        if found != FORMAT:
            raise TeacherError(f"{self} has format {found} and this version reads {FORMAT}; make a new store.")
        if _checksum_of(read) != read.get("checksum"):
            raise TeacherError(f"{self}: {MANIFEST} is damaged; {REPAIR}.")
        return dict(read)

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Write the manifest, its own checksum included."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**content, "checksum": _checksum_of(content)}, indent=1, sort_keys=True)
        _write(self.folder / MANIFEST, text.encode() + b"\n")

    def write_shard(self, name: str, rows: Sequence[TargetRow], *, vocabulary: int) -> str:
        """Write a shard and return its checksum.

        Args:
            name: File name.
            rows: In order.
            vocabulary: Token ids are below this; 65,536 and less are stored in two bytes.
        """
        table = _table(rows, np.dtype(np.uint16 if vocabulary <= 2**16 else np.uint32))
        sink = pa.BufferOutputStream()
        pq.write_table(
            table,
            sink,
            compression="zstd",
            compression_level=9,
            use_dictionary=["token_ids.list.element", "completion.list.element"],
            column_encoding={
                "log_probs.list.element": "BYTE_STREAM_SPLIT",
                "log_normalizers.list.element": "BYTE_STREAM_SPLIT",
            },
            write_statistics=False,
        )
        _write(self.folder / name, sink.getvalue())
        return self.checksum(name)

    def checksum(self, name: str) -> str:
        """Return the sha256 of a file; an empty text where it cannot be read."""
        try:
            return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
        except OSError:
            return ""

    def damaged(self, manifest: Mapping[str, Any]) -> list[str]:
        """Return the files that are missing, or whose content is not what the manifest says."""
        return [name for name, expected in files_of(manifest).items() if self.checksum(name) != expected]

    def discard_damaged(self) -> list[str]:
        """Delete the files that are not what the manifest says, and return their names.

        A damaged manifest goes too: which shards are whole is then not known any more.
        """
        try:
            damaged = self.damaged(self.manifest()) if self.begun else []
        except TeacherError:
            damaged = [MANIFEST]
        for name in damaged:
            (self.folder / name).unlink(missing_ok=True)
        return damaged

    def check(self, manifest: Mapping[str, Any]) -> None:
        """Refuse a store with a damaged file.

        Raises:
            TeacherError: Naming the file.
        """
        for name in self.damaged(manifest):
            what = "differs from its checksum" if (self.folder / name).is_file() else "is missing"
            raise TeacherError(f"{self}: {name} is damaged: it {what}; {REPAIR}.")

    def read_shard(self, name: str, *, k: int, temperatures: int) -> list[TargetRow]:
        """Return a shard's rows; the arrays are views of one piece of memory."""
        table = pq.read_table(self.folder / name, memory_map=False)
        keys = table["key"].to_pylist()
        completion, ids, log_probs, normalizers = (
            _lists(table[column].combine_chunks())
            for column in ("completion", "token_ids", "log_probs", "log_normalizers")
        )
        return [
            TargetRow(
                key, completion[i], _by_token(ids[i], k), _by_token(log_probs[i], k), _by_token(norms, temperatures)
            )
            for i, (key, norms) in enumerate(zip(keys, normalizers, strict=True))
        ]


def files_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksum of each file that a manifest names."""
    files = {shard["name"]: shard["sha256"] for shard in manifest["shards"]}
    return {**files, **manifest["files"]}


def _checksum_of(content: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest's content."""
    text = json.dumps({k: v for k, v in content.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _table(rows: Sequence[TargetRow], ids: np.dtype[Any]) -> pa.Table:
    """Return rows as a table; what is two-dimensional lies rank by rank, so that like stands beside like."""
    return pa.table(
        {
            "key": pa.array([row.key for row in rows], pa.binary(16)),
            "completion": _column([row.completion.astype(ids) for row in rows]),
            "token_ids": _column([row.token_ids.astype(ids).T.ravel() for row in rows]),
            "log_probs": _column([row.log_probs.astype(np.float16).T.ravel() for row in rows]),
            "log_normalizers": _column([row.log_normalizers.astype(np.float32).T.ravel() for row in rows]),
        }
    )


def _column(parts: Sequence[np.ndarray]) -> pa.ListArray:
    """Return arrays as one column of lists."""
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(parts)))


def _lists(column: pa.ListArray) -> list[np.ndarray]:
    """Return a column of lists as views of its values."""
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    return [values[a:b] for a, b in itertools.pairwise(offsets)]


def _by_token(flat: np.ndarray, width: int) -> np.ndarray:
    """Return [n, width] of what lies rank by rank."""
    return flat.reshape(width, -1).T


def _write(path: Path, content: Any) -> None:
    """Write a file so that it is complete or not there, whenever the power goes."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
