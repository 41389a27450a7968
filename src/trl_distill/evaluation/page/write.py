"""Writing `report.html` and `report.json` into a folder, beside what an earlier report there says of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.atomic_file import flush, replacing
from . import DATA, PAGE
from .content import EVALUATE, FORMAT, Advice, Report, StageOfRun, Step, Training
from .render import render

if TYPE_CHECKING:
    from ..result import Evaluation
    from .search import SearchOnPage


def write_report(
    folder: Path,
    *,
    name: str,
    training: Training | None = None,
    evaluation: Evaluation | None = None,
    advice: Sequence[Advice] = (),
    next_steps: Sequence[Step] = (),
    project: Path | None = None,
) -> dict[str, Path]:
    """Write both files and return them by name: "page" and "report".

    Args:
        folder: Where to; made if it is missing.
        name: Name of the project.
        training: The run; None takes it, what looked wrong with it and what to do next from the report in `project`,
            if there is one.
        evaluation: The evaluation of its student; None if there is none.
        advice: The warnings.
        next_steps: The next step.
        project: The project's folder; None is `folder`.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report = Report(name, now, training, evaluation, tuple(advice), tuple(next_steps))
    if training is None:
        report = _with_training(report, project or folder)
    return _written(report, folder)


def _written(report: Report, folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as both:  # a disk that fills leaves the earlier pair, not one of each
        for name, text in ((DATA, json.dumps(report.to_dict(), indent=1, default=str) + "\n"), (PAGE, render(report))):
            written = both.enter_context(replacing(folder / name))
            written.write_bytes(text.encode())
            flush(written)
    return {"page": folder / PAGE, "report": folder / DATA}


def add_stages(folder: Path, stages: Sequence[StageOfRun]) -> None:
    """Add the stages of a run to the report of the last one.

    Raises:
        OSError, ValueError, KeyError, TypeError: There is no report of this version in the folder.
    """
    _written(replace(_read(folder), stages=tuple(stages)), folder)


def write_search(
    folder: Path, search: SearchOnPage, *, name: str, best: Path, next_steps: Sequence[Step]
) -> dict[str, Path]:
    """Write the page of a search, which also shows the report of its best trial; return both files by name.

    Args:
        folder: Where to.
        search: The search.
        name: Name of the project.
        best: The best trial's project.
        next_steps: The next step.

    Raises:
        OSError, ValueError, KeyError, TypeError: There is no report of this version in `best`.
    """
    from ..result import Evaluation

    values = json.loads((best / DATA).read_text(encoding="utf-8"))
    evaluated = [Advice(**entry) for entry in values["advice"] if entry["of"] == "evaluation"]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    evaluation = Evaluation.from_dict(values["evaluation"])
    report = Report(name, now, None, evaluation, tuple(evaluated), tuple(next_steps), search=search)
    return _written(_with_training(report, best), folder)


def read_training(folder: Path) -> Training | None:
    """Return the run that a folder's report is of; None if there is no such report."""
    try:
        return _read(folder).training
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(folder: Path) -> Report:
    """Return a folder's report without its evaluation, and without what was said of that."""
    values = json.loads((folder / DATA).read_text(encoding="utf-8"))
    if values["format"] != FORMAT or values["training"] is None:
        raise ValueError("a report of another version, or of no run")
    advice = [Advice(**entry) for entry in values["advice"] if entry["of"] == "training"]
    steps = [Step(**entry) for entry in values["next_steps"]]
    stages = [StageOfRun.from_dict(entry) for entry in values.get("stages", [])]
    training = Training.from_dict(values["training"])
    return Report(values["name"], values["created"], training, None, tuple(advice), tuple(steps), tuple(stages))


def _with_training(report: Report, folder: Path) -> Report:
    """Return a report with the run that a folder's report is of, what looked wrong with it, and what to do next."""
    try:
        known = _read(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return report  # written by another version, or by hand: the evaluation has a page of its own
    left = [step for step in known.next_steps if EVALUATE not in step.command and step not in report.next_steps]
    return replace(
        report,
        training=known.training,
        advice=(*report.advice, *known.advice),
        next_steps=(*report.next_steps, *left),
        stages=known.stages,
    )
