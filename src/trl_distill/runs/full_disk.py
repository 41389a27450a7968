"""A disk that fills while a run writes: one sentence, nothing broken left behind, and everything paid for kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..config.setting_names import name_settings
from ..data.atomic_file import discard_unfinished
from ..data.folder_lock import is_main_rank
from ..data.full_disk import file_not_written, free_bytes, size_text, why_not_written
from ..errors import DistillError, counted

KEPT = {
    "teacher_completions.jsonl": "completions",
    "completions.jsonl": "completions",
    "student_completions.jsonl": "completions of students",
    "teacher_logprobs.jsonl": "log-probabilities",
    "judge_answers.jsonl": "answers of the judge",
}
RESUME = "run the same again and add --resume to continue"
AGAIN = "run the same command again to continue"


def explaining_full_disk(folder: Path, *, again: str = AGAIN) -> AbstractContextManager[None]:
    """Turn the error of a full disk into a sentence, and delete what was written in part.

    Args:
        folder: The project, store or export that is written.
        again: How to continue.

    Raises:
        DistillError: It names the file, and what is kept.
    """

    def found(error: Exception) -> tuple[Path, str]:
        file = file_not_written(error) or _newest(folder)
        if is_main_rank():
            _discard_partial(folder)
        kept = _kept(folder)
        return file, f"kept in {str(folder)!r}: {', '.join(kept)}; " if kept else "nothing had to be kept; "

    return _explaining(found, again)


def explaining_full_disk_of(file: Path, *, again: str = AGAIN) -> AbstractContextManager[None]:
    """Turn the error of a full disk into a sentence, for one file: it is replaced as a whole, or keeps its lines.

    Args:
        file: The file that is written.
        again: How to continue.

    Raises:
        DistillError: It names the file.
    """
    return _explaining(lambda _: (file, ""), again)


@contextmanager
def _explaining(found: Callable[[Exception], tuple[Path, str]], again: str) -> Iterator[None]:
    """Raise an error that explains a full disk; `found` returns the file, and a clause on the files that are kept."""
    try:
        yield
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        file, others = found(error)
        raise DistillError(
            f"{reason}: {str(file)!r} could not be written, with {size_text(free_bytes(file))} free there now; "
            f"{others}make room, then {name_settings(again)}."
        ) from error


def _partial(folder: Path) -> list[Path]:
    """Return the folders of a run that were not completed; a damaged checkpoint was, and may be restored."""
    from ..trainer.checkpoints import INCOMPLETE, fault_of

    checkpoints = [p for p in (folder / "checkpoints").glob("checkpoint-*") if fault_of(p) == INCOMPLETE]
    written = (folder / ".writing", *folder.glob(".*.writing"))
    return [path for path in (*checkpoints, *written) if path.is_dir() and not path.is_symlink()]


def _newest(folder: Path) -> Path:
    """Return the file that was written last in what was not completed; the folder if there is none."""
    files = [path for partial in _partial(folder) for path in partial.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=folder)


def _discard_partial(folder: Path) -> None:
    for path in _partial(folder):
        shutil.rmtree(path, ignore_errors=True)
    discard_unfinished(folder)


def _kept(folder: Path) -> list[str]:
    from ..trainer.checkpoints import last_complete

    last = last_complete(folder / "checkpoints")
    kept = [] if last is None else [last.name]
    for name, what in KEPT.items():
        lines = (folder / name).read_bytes().count(b"\n") if (folder / name).is_file() else 0
        if lines:
            kept.append(f"{lines:,} {what}")
    shards = len(list(folder.glob("shard-*.parquet")))
    return [*kept, counted(shards, "shard")] if shards else kept
