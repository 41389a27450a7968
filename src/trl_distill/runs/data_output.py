"""The files of `aitraining data` and `aitraining queries`, complete or not there, and never lost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.user_files import user_path
from ..data.atomic_file import discard_unfinished, obstacle, replacing
from ..data.folder_lock import file_lock
from ..errors import ParamsError, ProjectError
from .full_disk import explaining_full_disk_of

if TYPE_CHECKING:
    from ..data.row_faults import Cells

SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class DataOutput:
    """The files that are written.

    Attributes:
        rows: The chosen rows.
        held_out: Rows that are held out; written if a share is.
        report: What was removed, and why.
    """

    rows: Path
    held_out: Path
    report: Path

    @classmethod
    def of(cls, output: str | None, *, example: str = "diverse.jsonl") -> DataOutput:
        """Return the files of an output.

        Args:
            output: The file of the rows.
            example: A name for it in the error if it is missing.

        Raises:
            ParamsError: There is no output, or it is not a file of JSON lines.
        """
        if output is None:
            raise ParamsError(f"output is missing; give --output a file to write, such as {example}.")
        path = user_path(output, name="output")
        if path.suffix.lower() not in SUFFIXES:
            raise ParamsError(
                f"output {output!r} does not end in {' or '.join(SUFFIXES)}; rows are written as JSON lines."
            )
        return cls(
            path, path.with_name(f"{path.stem}.heldout{path.suffix}"), path.with_name(f"{path.stem}.report.json")
        )

    @property
    def answers(self) -> Path:
        """Where a teacher's answers are kept, from which the rows are read."""
        return self.rows.with_name(f"{self.rows.stem}.answers.jsonl")

    @property
    def _name(self) -> str:
        return f"output {str(self.rows)!r}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the files for one process, see `file_lock`; what a killed one was writing is deleted."""
        with file_lock(self.rows, what=self._name, instead="another --output"):
            for path in (self.rows, self.held_out, self.report):
                discard_unfinished(path.parent, of=path)
            yield

    def check(self, read: Sequence[object], *, holds_out: bool, overwrite: bool) -> None:
        """Refuse files that cannot be written, that are read, or that would be lost.

        Args:
            read: What is read: names of files and folders among it.
            holds_out: Whether held-out rows are written.
            overwrite: Whether files of an earlier run may be replaced.

        Raises:
            ProjectError: Naming the file.
        """
        from ..data.loading import is_read_with

        above = obstacle(self.rows.parent)
        if above is not None:
            raise ProjectError(f"{self._name} cannot be created: {str(above)!r} is not a writable folder.")
        files = [self.rows, self.report, *([self.held_out] if holds_out else [])]
        sources = [Path(str(one)).expanduser().resolve() for one in read]
        for path in files:
            if path.resolve() in sources:
                raise ProjectError(f"{str(path)!r} is read, and would be replaced; give another --output.")
            if any(is_read_with(source, path.resolve()) for source in sources):
                raise ProjectError(f"{str(path)!r} is in a folder that is read; give --output a file elsewhere.")
            if path.is_dir():
                raise ProjectError(f"{str(path)!r} is a folder; give --output a file.")
            if path.exists() and not overwrite:
                raise ProjectError(
                    f"{str(path)!r} is there already; give --overwrite to replace it, or another --output."
                )
        if not holds_out and self.held_out.exists() and self.held_out.resolve() not in sources:
            raise ProjectError(
                f"{str(self.held_out)!r} has rows that were held out of an earlier {self.rows.name} and may be in this "
                "one; give it to --holdout, delete it, or give another --output."
            )

    def write(self, rows: Iterable[Cells], held_out: Iterable[Cells] | None, report: Mapping[str, object]) -> None:
        """Write the files; an earlier run's are replaced when all of these are complete.

        Raises:
            DistillError: The disk is full.
        """
        from ..data.plain_rows import write_rows

        with explaining_full_disk_of(self.rows, again="run the same command again"), ExitStack() as files:
            write_rows(files.enter_context(replacing(self.rows)), rows)
            text = json.dumps(report, ensure_ascii=False, indent=2) + "\n"
            files.enter_context(replacing(self.report)).write_text(text, encoding="utf-8")
            if held_out is not None:
                write_rows(files.enter_context(replacing(self.held_out)), held_out)
