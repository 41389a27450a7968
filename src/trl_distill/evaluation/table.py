"""An evaluation on the terminal: a table of the sides, and the verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metrics import metric_label
from .result import AFTER, TEACHER, Evaluation, Side


def table_of(evaluation: Evaluation) -> str:
    """Return the sides as a table: a column for each, a line for each figure that any of them has."""
    sides = evaluation.sides
    lines = [["", *(side.label for side in sides)]]
    for metric in sides[0].scores:
        decides = " (decides)" if metric == evaluation.metric else ""
        lines.append([f"{metric_label(metric)}{decides}", *(_number(side.mean_score(metric)) for side in sides)])
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


def savings_of(evaluation: Evaluation) -> str:
    """Return the savings per query in one line."""
    cost = evaluation.cost
    assert cost is not None
    saved = cost.teacher_tokens - cost.student_tokens
    parts = [f"{saved:,.1f} prompt tokens ({cost.compression:.1f} times the characters)"]
    if cost.speedup is not None:
        parts.append(f"the teacher takes {cost.speedup:.2f} times as long")
    if cost.money is not None:
        parts.append(f"a million queries cost {cost.money.student:,.2f} instead of {cost.money.teacher:,.2f}")
        if cost.money.break_even is not None:
            parts.append(f"the run has paid for itself after {cost.money.break_even:,} queries")
    return f"Saved per query: {'; '.join(parts)}."


def judged(evaluation: Evaluation) -> list[str]:
    """Return a judge's results, a line for each comparison."""
    judgement, lines = evaluation.judgement, []
    for comparison in () if judgement is None else judgement.comparisons:
        first, second = (evaluation.side(name) for name in (comparison.first, comparison.second))
        assert judgement is not None
        assert first is not None
        assert second is not None
        rate = comparison.win_rate
        said = "gave no answer that could be read"
        if rate is not None:
            said = (
                f"prefers the {first.label} to the {second.label} in {rate.estimate:.0f}% of the rows "
                f"({rate.level:.0%} interval {rate.low:.0f}% to {rate.high:.0f}%; a tie is half)"
            )
            if not math.isnan(comparison.consistent):
                said += f", with the same answer in both orders in {comparison.consistent:.0%}"
        lines.append(f"Judge {judgement.judge} {said}.")
    return lines


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
