"""`report.html` from a `Report`: one file that loads nothing, runs nothing, and is at most 300 KB."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..metrics import metric_label
from ..result import AFTER, Evaluation
from .charts import Bar, bars, interval
from .compared import COLOURS, LEVELS, Limits, evaluated_rows, got_worse, token_maps, trained_rows
from .content import EVALUATE, Report, charts_of, curve
from .search import charts_of_search
from .stages import charts_of_stages, rows_of_stages
from .text import cut, plainly_visible, visible

if TYPE_CHECKING:
    from .content import Training

FOLDER = Path(__file__).parent
MOST_BYTES = 300_000
# what is tried until a page is small enough; the last one has no text of rows
LIMITS = (
    Limits(rows=20, characters=1200, token_rows=4, tokens=120, setting=400, template=4000),
    Limits(rows=12, characters=800, token_rows=3, tokens=80, setting=200, template=2000),
    Limits(rows=8, characters=400, token_rows=2, tokens=60, setting=100, template=1000),
    Limits(rows=4, characters=200, token_rows=1, tokens=40, setting=100, template=400),
    Limits(rows=0, characters=100, token_rows=0, tokens=0, setting=60, template=100),
)
NAME_CHARACTERS = 200  # of a name, a label or a sentence in a table


def render(report: Report) -> str:
    """Return the page, with as much of the rows as fits into `MOST_BYTES`."""
    for limits in LIMITS:
        page = _page(report, limits)
        if len(page.encode()) <= MOST_BYTES:
            break
    return page


def _page(report: Report, limits: Limits) -> str:
    training, evaluation = report.training, report.evaluation
    what, maps = token_maps(training, evaluation, limits)
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    rows = [] if training is None else trained_rows(training, limits)
    return _environment().get_template("page.html.jinja").render(
        report=report,
        training=training,
        evaluation=evaluation,
        evaluate=next((step for step in report.next_steps if EVALUATE in step.command), None),
        metric="" if evaluation is None else metric_label(evaluation.metric),
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        charts=[] if training is None else charts_of(training.history),
        tiles=[*_evaluated(evaluation), *_trained(training, with_evaluation=evaluation is not None)],
        search=report.search,
        search_charts=charts_of_search(report.search),
        stages=rows_of_stages(report.stages),
        stage_charts=charts_of_stages(report.stages),
        data_rows=[] if training is None else _data_rows(training),
        scores=_scores(evaluation),
        scored=_scored(evaluation),
        gap=_gap(evaluation),
        rows=rows if evaluation is None else evaluated_rows(evaluation, limits),
        worse=None if evaluation is None else got_worse(evaluation),
        maps=maps,
        colours=what,
        levels=LEVELS,
        limits=limits,
    )  # fmt: skip


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda value: visible(str(value))
    environment.filters["plain"] = plainly_visible
    environment.filters["short"] = _short
    environment.filters["place"] = _place
    environment.filters["counts"] = _counts
    environment.filters["figure"] = _figure
    environment.globals["colour_of"] = COLOURS.get
    return environment


def _short(value: object, characters: int = NAME_CHARACTERS) -> Markup:
    """Return a value as text, cut if it is long; nothing for None."""
    text, left_out = cut("" if value is None else str(value), characters)
    return visible(text + (f" … {left_out:,} more characters" if left_out else ""))


def _place(value: str) -> Markup:
    """Return a model's name; of an absolute path the last two folders."""
    parts = Path(value).parts
    return _short(f"…/{'/'.join(parts[-2:])}" if Path(value).is_absolute() and len(parts) > 3 else value)


def _counts(value: object) -> Markup:
    """Return a figure of the data; several by name are listed."""
    if isinstance(value, Mapping):
        return _short(", ".join(f"{count:,} {name}" for name, count in value.items()))
    return _short(f"{value:,}" if isinstance(value, (int, float)) else value)


def _figure(value: float | None, form: str = "{:.3g}") -> str:
    """Return a figure, or a dash if there is none."""
    return "–" if value is None or math.isnan(value) else form.format(value)


def _evaluated(evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """Return an evaluation's main figures: label, figure, and what is to be said of it."""
    if evaluation is None:
        return []
    tiles = []
    gap = evaluation.gap_closed
    if gap is not None:
        ends = f"{gap.low:.2f} to {gap.high:.2f}, {gap.level:.0%} interval"
        tiles.append(("Gap closed", f"{gap.estimate:.2f}", ends if gap.is_bounded else "these rows do not bound it"))
    cost = evaluation.cost
    if cost is not None:
        saved = 1 - cost.student_tokens / cost.teacher_tokens if cost.teacher_tokens else 0.0
        tokens = f"{cost.student_tokens:,.0f} instead of {cost.teacher_tokens:,.0f}"
        tiles.append(("Prompt tokens saved", f"{saved:.0%}", f"{tokens} a query"))
        if cost.speedup is not None:
            tiles.append(("Time per query", f"{cost.speedup:.2g}×", "as fast as the teacher, medians"))
    after = evaluation.side(AFTER)
    if after is not None:
        tiles.append(("Ended by itself", f"{after.finished_share:.0%}", "of the student's completions"))
    return tiles


def _trained(training: Training | None, *, with_evaluation: bool) -> list[tuple[str, str, str]]:
    """Return a run's main figures; beside an evaluation the fewest."""
    if training is None:
        return []
    tiles = []
    divergence = curve(training.history, "kl")
    if divergence:
        first, last = divergence[0][1], divergence[-1][1]
        tiles.append(("Divergence in training", f"{last:.3g}", f"nats per token; {first:.3g} in the first log line"))
    if with_evaluation:
        return tiles
    agreement = curve(training.history, "top1_agreement")
    if agreement:
        tiles.append(("Same likeliest token", f"{agreement[-1][1]:.0%}", "as the teacher, in the last log line"))
    loss = curve(training.history, "loss")
    if loss and not divergence:
        tiles.append(("Loss", f"{loss[-1][1]:.3g}", f"{loss[0][1]:.3g} in the first log line"))
    flight = training.data.get("train", {})
    saved = flight.get("prompt_tokens_saved")
    if isinstance(saved, (int, float)):
        tokens = f"{flight['student_prompt_tokens']} instead of {flight['teacher_prompt_tokens']} a query"
        tiles.append(("Prompt tokens saved", f"{saved:,.0f}", tokens))
    minutes = f"{training.seconds:,.0f} s" if training.seconds < 120 else f"{training.seconds / 60:,.0f} min"
    tiles.append(("Optimizer steps", f"{training.steps:,}", f"in {minutes}"))
    return tiles


def _data_rows(training: Training) -> list[str]:
    """Return the names of the figures that any dataset has, those of all that are 0 or unknown left out."""
    names = dict.fromkeys(name for figures in training.data.values() for name in figures)
    return [name for name in names if name == "rows" or any(figures.get(name) for figures in training.data.values())]


def _scores(evaluation: Evaluation | None) -> str:
    """Return the sides' scores as bars."""
    if evaluation is None:
        return ""
    shown = [
        Bar(plainly_visible(side.label[:60]), side.mean_score(evaluation.metric), COLOURS.get(side.name, "prompted"))
        for side in evaluation.sides
        if evaluation.metric in side.scores and not math.isnan(side.mean_score(evaluation.metric))
    ]
    score = plainly_visible(metric_label(evaluation.metric)[:60])
    return bars(f"{score} of each side, 0 to 100", shown) if shown else ""


def _scored(evaluation: Evaluation | None) -> int:
    """Return how many rows have a score of the metric that decides."""
    after = None if evaluation is None else evaluation.side(AFTER)
    if evaluation is None or after is None:
        return 0
    return sum(not math.isnan(score) for score in after.scores.get(evaluation.metric, ()))


def _gap(evaluation: Evaluation | None) -> str:
    """Return the gap closed as an interval on its axis."""
    if evaluation is None or evaluation.gap_closed is None:
        return ""
    gap = evaluation.gap_closed
    return interval(f"gap closed, {gap.estimate:.2f}", gap)
