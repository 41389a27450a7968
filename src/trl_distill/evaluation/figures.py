"""The metrics of an evaluation by name, as the guide and `Evaluation` call them."""

from __future__ import annotations

from typing import Any

from .metrics import metric_named
from .result import AFTER, TEACHER, Evaluation, summary


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics by name; missing ones are None."""
    after, teacher = evaluation.side(AFTER), evaluation.side(TEACHER)
    assert after is not None
    assert teacher is not None
    chrf = metric_named("chrf").score
    pairs = zip(after.completions, teacher.completions, strict=True)
    cost = evaluation.cost
    return {
        "output_similarity": sum(chrf(mine, theirs) for mine, theirs in pairs) / len(after.completions),
        "speedup": None if cost is None else cost.speedup,
        "prompt_compression": None if cost is None else cost.compression,
        "score": after.mean_score(evaluation.metric),
        "metric": evaluation.metric,
        "verdict": evaluation.verdict.sentence,
        "works": {"works": True, "does not work": False}.get(evaluation.verdict.kind),
        "gain": evaluation.gain,
        "teacher_gain": evaluation.teacher_gain,
        "gap_closed": evaluation.gap_closed,
        "cost": cost,
        "sides": {side.name: summary(side) for side in evaluation.sides},
    }
