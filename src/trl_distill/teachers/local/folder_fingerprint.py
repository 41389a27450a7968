"""Fingerprints of model weights by the content of their files, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...data.json_object import read_object

WEIGHTS = ("*.safetensors", "*.bin")
BLOCK, BLOCKS = 16 * 2**10, 1024  # a file up to 16 MiB is read whole; of 5 GB, a block in every 5 MB


def of_folder(folder: str) -> list[list[object]] | None:
    """Return name, size and hash of a saved model's weight files; None if there is no such folder.

    Large files are hashed in blocks spread over them, so that a merged adapter or an edited layer shows. The base of an
    adapter, which is no adapter itself, is part of it.
    """
    found, adapter = _of_weights(folder), Path(folder) / "adapter_config.json"
    if found is not None and adapter.is_file():
        base = str((read_object(adapter) or {}).get("base_model_name_or_path"))
        found.append([adapter.name, hashlib.sha256(adapter.read_bytes()).hexdigest(), _of_weights(base) or base])
    return found


def _of_weights(folder: str) -> list[list[object]] | None:
    root = Path(folder)
    if not root.is_dir():
        return None
    files = (path for pattern in WEIGHTS for path in root.glob(pattern) if path.name != "training_args.bin")
    return [[path.name, path.stat().st_size, _hash_of_file(path)] for path in sorted(files) if path.is_file()]


def _hash_of_file(path: Path) -> str:
    """Return a hash of a file's blocks, of a large file those that are spread evenly from its first to its last."""
    size, digest = path.stat().st_size, hashlib.sha256()
    spread = [(size - BLOCK) * k // (BLOCKS - 1) for k in range(BLOCKS)]
    with path.open("rb") as file:
        for start in range(0, size, BLOCK) if size <= BLOCK * BLOCKS else spread:
            file.seek(start)
            digest.update(file.read(BLOCK))
    return digest.hexdigest()
