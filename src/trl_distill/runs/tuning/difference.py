"""Whether a trial is better than another by more than noise, asked of the same rows."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ...evaluation.interval import mean_interval, rows_needed
from ...evaluation.result import Interval
from ...evaluation.verdict import POINTS, rounded_rows
from .result import Difference, Objective, Trial


def difference_of(best: Trial, second: Trial, *, objective: Objective, seed: int = 0) -> Difference | None:
    """Return how much better a trial is than another, paired row by row; None if no row was measured of both.

    Of scores it is the mean difference. Of divergences, which are means over tokens, it is the sum over all tokens
    divided by their number, with the variance of such a ratio (W. G. Cochran, "Sampling Techniques", 1977, section
    2.11). Both intervals are bootstrap-t intervals, see `evaluation.interval`.
    """
    mine, theirs = best.rows, second.rows
    if mine is None or theirs is None:
        return None
    if objective == "divergence":
        tokens = np.asarray(mine.tokens, dtype=float)
        ahead = np.asarray(theirs.divergence) - np.asarray(mine.divergence)
        mean = float((ahead * tokens).sum() / tokens.sum())
        ahead = mean + (ahead - mean) * tokens / tokens.mean()
        return _difference(mean_interval(ahead, limits=(-math.inf, math.inf), seed=seed), ahead, "nats")
    ahead = np.asarray(mine.scores) - np.asarray(theirs.scores)
    ahead = ahead[~np.isnan(ahead)]
    return _difference(mean_interval(ahead, limits=POINTS, seed=seed), ahead, "points") if len(ahead) else None


def _difference(interval: Interval, per_row: np.ndarray, unit: Literal["points", "nats"]) -> Difference:
    shown = interval.low > 0
    return Difference(interval, unit, len(per_row), None if shown else rounded_rows(rows_needed(per_row, per_row)))
