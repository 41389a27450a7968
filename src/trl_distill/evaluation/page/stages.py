"""The stages of a run on its page: one row each, and their curves one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .charts import MOST_POINTS, Chart, Line
from .content import StageOfRun, Training, curve

COLOURS = ("first", "second", "third", "fourth")
Points = tuple[tuple[float, float], ...]


def stage_of(number: int, folder: str, settings: Mapping[str, object], training: Training | None) -> StageOfRun:
    """Return a stage with the figures of its report.

    Args:
        number: Counted from 1.
        folder: Its project, relative to that of the whole run; empty for the last stage.
        settings: Its settings that the page compares, by name.
        training: The run in its report; None if it could not be read.
    """
    if training is None:
        return StageOfRun(number, folder, settings)
    return StageOfRun(
        number,
        folder,
        settings,
        steps=training.steps,
        seconds=training.seconds,
        loss=curve(training.history, "loss"),
        divergence=curve(training.history, "kl"),
        evaluation=training.metrics.get("eval_loss"),
    )


def rows_of_stages(stages: Sequence[StageOfRun]) -> list[dict[str, object]]:
    """Return a table's rows: cells by their column's name; a column without any figure is left out."""
    rows = [_row(stage) for stage in stages]
    empty = {name for row in rows for name in row if all(other[name] is None for other in rows)}
    return [{name: "–" if cell is None else cell for name, cell in row.items() if name not in empty} for row in rows]


def _row(stage: StageOfRun) -> dict[str, object]:
    return {
        "stage": f"{stage.number} ({stage.folder})" if stage.folder else stage.number,
        **{name: "none" if value is None else value for name, value in stage.settings.items()},
        "steps": None if stage.steps is None else f"{stage.steps:,}",
        "time": None if stage.seconds is None else f"{stage.seconds:,.0f} s",
        "loss": _change(stage.loss),
        "divergence, nats per token": _change(stage.divergence),
        "loss on held-out rows": None if stage.evaluation is None else f"{stage.evaluation:.3g}",
    }


def _change(points: Points) -> str | None:
    """Return the first and the last value of a curve."""
    return f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if points else None


def charts_of_stages(stages: Sequence[StageOfRun]) -> list[Chart]:
    """Return loss and divergence over the steps of all stages, a line for each stage."""
    charts = (
        Chart("Loss of all stages", "", _lines(stages, [stage.loss for stage in stages])),
        Chart(
            "Divergence of all stages, each from its own teacher",
            "nats per token",
            _lines(stages, [stage.divergence for stage in stages]),
            from_zero=True,
        ),
    )
    return [chart for chart in charts if chart.lines]


def _lines(stages: Sequence[StageOfRun], curves: Sequence[Points]) -> tuple[Line, ...]:
    lines: list[Line] = []
    before = 0
    for stage, points in zip(stages, curves, strict=True):
        few = points[:: math.ceil(len(points) * len(stages) / MOST_POINTS) or 1]
        moved = tuple((before + step, value) for step, value in dict.fromkeys((*few, *points[-1:])))
        if moved:
            lines.append(Line(f"stage {stage.number}", COLOURS[len(lines) % len(COLOURS)], moved))
        before += stage.steps or 0
    return tuple(lines)
