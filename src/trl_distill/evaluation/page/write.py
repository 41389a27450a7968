"""Writing `report.html` and `report.json` into a folder, beside what an earlier report there says of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...data.atomic_file import write_text
from . import DATA, PAGE
from .content import EVALUATE, FORMAT, Advice, Report, Step, Training
from .render import render

if TYPE_CHECKING:
    from ..result import Evaluation


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
    folder.mkdir(parents=True, exist_ok=True)
    data = write_text(folder / DATA, json.dumps(report.to_dict(), indent=1, default=str) + "\n")
    return {"page": write_text(folder / PAGE, render(report)), "report": data}


def _with_training(report: Report, folder: Path) -> Report:
    """Return a report with the run that a folder's report is of, what looked wrong with it, and what to do next."""
    try:
        values = json.loads((folder / DATA).read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["training"] is None:
            return report
        advice = [Advice(**entry) for entry in values["advice"] if entry["of"] == "training"]
        steps = [Step(**entry) for entry in values["next_steps"] if EVALUATE not in entry["command"]]
        training = Training.from_dict(values["training"])
    except (OSError, ValueError, KeyError, TypeError):
        return report  # written by another version, or by hand: the evaluation has a page of its own
    steps = [*report.next_steps, *(step for step in steps if step not in report.next_steps)]
    return replace(report, training=training, advice=(*report.advice, *advice), next_steps=tuple(steps))
