"""Find checkpoints to resume from: complete ones whose files are as they were written.

checkpoint-N/
  trainer_state.json   Trainer writes it after all others; without it a kill came in between
  checksums.json       the CRC-32 of each file that is read on resuming; null while the checkpoint is written

A checkpoint without checksums, of an earlier version or another trainer, is checked as far as its formats allow.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..data.atomic_file import flush_all, write_text
from ..data.checksum import checksum_of, file_checksum
from ..models.file_formats import is_json, is_malformed

STATE, CHECKSUMS = "trainer_state.json", "checksums.json"
JIT_MARK = "checkpoint-is-incomplete.txt"  # transformers deletes it when `enable_jit_checkpoint` has written one
NOT_READ = ("README.md", "training_args.bin", CHECKSUMS, JIT_MARK)  # on resuming: they may be edited or deleted
INCOMPLETE = "it is incomplete"
READERS = 8  # threads, which read the files of a sharded checkpoint at the same time

State = tuple[str, tuple[tuple[str, int, int], ...]]  # a folder, and name, size and time of each file below it
_faults: dict[State, str | None] = {}  # of what was read in this process


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a folder.

    Attributes:
        usable: The newest that is complete and intact; None if there is none.
        damaged: The names of newer ones that are complete but damaged, each with what is wrong; the newest first.
    """

    usable: Path | None
    damaged: tuple[tuple[str, str], ...] = ()

    @property
    def faults(self) -> str:
        """What is wrong with those that are damaged."""
        return "; ".join(f"{name}: {fault}" for name, fault in self.damaged)

    @property
    def note(self) -> str:
        """Return a line for the user if a newer checkpoint than the usable one is damaged; else an empty text."""
        if self.usable is None or not self.damaged:
            return ""
        return f"{self.faults}. Resuming from {self.usable.name}."


def find_checkpoints(folder: str | os.PathLike[str]) -> Checkpoints:
    """Find the newest usable checkpoint in a folder; incomplete ones are skipped without a word."""
    numbered = [(p.name.rpartition("-")[2], p) for p in Path(folder).glob("checkpoint-*")]
    damaged: list[tuple[str, str]] = []
    for _, path in sorted(((int(number), p) for number, p in numbered if number.isdecimal()), reverse=True):
        fault = fault_of(path)
        if fault is None:
            return Checkpoints(path, tuple(damaged))
        if fault != INCOMPLETE:
            damaged.append((path.name, fault))
    return Checkpoints(None, tuple(damaged))


def last_complete(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest checkpoint in a folder that is complete and intact."""
    return find_checkpoints(folder).usable


def kept(folder: str | os.PathLike[str] | None) -> str:
    """Return which checkpoint is left in a folder, for an error."""
    last = None if folder is None else last_complete(folder)
    return "nothing was saved before" if last is None else f"the last checkpoint, {last}, is kept"


def fault_of(checkpoint: Path) -> str | None:
    """Say what keeps a checkpoint from being resumed from, such as "optimizer.pt is missing"; None if nothing does.

    Files that have not changed since this process has read or sealed them are not read again.
    """
    state = _state(checkpoint)
    if state not in _faults:
        _faults[state] = _fault(checkpoint)
    return _faults[state]


def _state(checkpoint: Path) -> State:
    there = ((path, path.stat()) for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return str(checkpoint), tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in there)


def _fault(checkpoint: Path) -> str | None:
    if (checkpoint / CHECKSUMS).is_file():
        return _differing(checkpoint)
    if not is_json(checkpoint / STATE):
        return INCOMPLETE
    return next((f"{path.name} is damaged" for path in _read(checkpoint) if is_malformed(path)), None)


def seal(checkpoint: Path, *, flush: bool = False) -> None:
    """Write the checksums of a checkpoint, which mark it as complete.

    Args:
        checkpoint: Its folder; every process has written its files.
        flush: Whether to have all files on the disk first.
    """
    if flush:
        flush_all(checkpoint)
    paths = _read(checkpoint)
    with ThreadPoolExecutor(READERS) as readers:
        sums = readers.map(file_checksum, paths)
        files = {_name(path, checkpoint): found for path, found in zip(paths, sums, strict=True)}
    content = {"crc32": files, "own": _own(files)}
    write_text(checkpoint / CHECKSUMS, json.dumps(content, indent=1) + "\n")
    _faults[_state(checkpoint)] = None


def begin(checkpoint: Path) -> None:
    """Create a checkpoint's folder, and mark it as incomplete before it is written or overwritten."""
    if checkpoint.is_symlink():  # what it leads to is not this run's
        checkpoint.unlink()
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_text(checkpoint / CHECKSUMS, "null\n")


def _differing(checkpoint: Path) -> str | None:
    """Say which file is not what its checksum says."""
    try:
        content = json.loads((checkpoint / CHECKSUMS).read_bytes())
        if content is None:
            return INCOMPLETE
        files: dict[str, str] = content["crc32"]
        intact = content["own"] == _own(files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        intact = False
    if not intact:
        return f"{CHECKSUMS} is damaged"
    with ThreadPoolExecutor(READERS) as readers:
        faults = readers.map(lambda name: _differs(checkpoint / name, name, files[name]), files)
        return next(filter(None, faults), None)


def _differs(path: Path, name: str, expected: str) -> str | None:
    if not path.is_file():
        return f"{name} is missing"
    try:
        found = file_checksum(path)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None if found == expected else f"{name} is damaged (its checksum differs)"


def _own(files: dict[str, str]) -> str:
    return checksum_of(json.dumps(files, sort_keys=True).encode())


def _read(checkpoint: Path) -> list[Path]:
    """Return the files that are read on resuming; those that begin with a dot are temporary."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if _name(path, checkpoint) not in NOT_READ]


def _name(path: Path, checkpoint: Path) -> str:
    return path.relative_to(checkpoint).as_posix()
