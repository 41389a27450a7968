"""An evaluation on the terminal: a table of the sides, and the verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import LABELS
from .result import AFTER, TEACHER, Evaluation, Side


def table_of(evaluation: Evaluation) -> str:
    """Return the sides as a table: a column for each, a line for each figure that any of them has."""
    sides = evaluation.sides
    lines = [["", *(side.label for side in sides)]]
    for metric in sides[0].scores:
        decides = " (decides)" if metric == evaluation.metric else ""
        lines.append([f"{LABELS.get(metric, metric)}{decides}", *(_number(side.mean_score(metric)) for side in sides)])
    lines += [
        ["divergence from the teacher", *(_fidelity(side, "mean_divergence", ".3f") for side in sides)],
        ["likeliest token the teacher's", *(_fidelity(side, "mean_agreement", ".0%") for side in sides)],
        ["ended by itself", *(f"{side.finished_share:.0%}" for side in sides)],
        ["repeats itself", *(f"{side.repeated_share:.0%}" for side in sides)],
        ["completion, tokens", *(_number(side.mean_length) for side in sides)],
        ["prompt, tokens", *(_number(sum(side.prompt_tokens) / len(side.prompt_tokens)) for side in sides)],
        ["first token, ms", *(_milliseconds(evaluation, side, "first_token") for side in sides)],
        ["query, ms", *(_milliseconds(evaluation, side, "query") for side in sides)],
    ]
    return "\n".join(_aligned([line for line in lines if any(cell != "-" for cell in line[1:])]))


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    first, *others = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        f"  {line[0]:<{first}}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line[1:], others, strict=True))
        for line in lines
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _milliseconds(evaluation: Evaluation, side: Side, name: str) -> str:
    cost = evaluation.cost
    timed = {} if cost is None else {TEACHER: cost.teacher_timing, AFTER: cost.student_timing}
    timing = timed.get(side.name)
    seconds = None if timing is None else getattr(timing, name)
    return "-" if seconds is None else f"{1000 * seconds:,.0f}"


def _fidelity(side: Side, name: str, form: str) -> str:
    value = math.nan if side.fidelity is None else getattr(side.fidelity, name)
    return "-" if math.isnan(value) else f"{value:{form}}"
