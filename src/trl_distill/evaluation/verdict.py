"""Whether the student works without the teacher's prompt: how much of the gap it closed, and a verdict in one line."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .interval import mean_interval, ratio_interval, rows_needed
from .result import Interval, Verdict

HALF = 0.5  # of the gap, which a student that works has closed at least
POINTS = (-100.0, 100.0)  # what a difference of two scores can be
MOST_ROWS = 100_000  # nobody collects more to decide a close case


class Decision(NamedTuple):
    """Figures of an `Evaluation` under its names.

    Attributes:
        gain: Mean score after minus before, in points; None without one of them.
        teacher_gain: Mean score of the teacher minus before, in points; None without one of them.
        gap_closed: The first divided by the second; None without a side, or if the second is 0.
        verdict: Whether it works.
    """

    gain: Interval | None
    teacher_gain: Interval | None
    gap_closed: Interval | None
    verdict: Verdict


def decide(
    *, before: ArrayLike | None, after: ArrayLike, teacher: ArrayLike | None, metric: str = "score", seed: int = 0
) -> Decision:
    """Compare the student before and after training with the teacher on the same n rows.

    It works if the 95 % intervals of the gain and of the gap closed lie above 0 and at or above one half. It does not
    if that of the gap closed lies below one half. There is no verdict if the interval of the teacher's gain includes 0
    or lies below it, or if there are too few rows.

    Args:
        before: [n] scores of the student before training, 0 to 100, NaN for none; None if it was not evaluated.
        after: [n] scores of the student after training.
        teacher: [n] scores of the teacher; None if it was not evaluated.
        metric: What the sentence calls the score.
        seed: Resampling seed.

    Raises:
        ValueError: The sides have different numbers of rows.
    """
    sides = [None if side is None else np.asarray(side, dtype=np.float64) for side in (before, after, teacher)]
    given = [side for side in sides if side is not None]
    scored = ~np.isnan(np.stack(given)).any(0)
    if not scored.any():
        return Decision(None, None, None, Verdict("no verdict", f"No verdict: no row has a score of {metric}."))
    start, end, goal = (None if side is None else side[scored] for side in sides)
    assert end is not None
    gain = None if start is None else mean_interval(end - start, limits=POINTS, seed=seed)
    teacher_gain = None if start is None or goal is None else mean_interval(goal - start, limits=POINTS, seed=seed)
    if start is None or goal is None or gain is None or teacher_gain is None:
        missing = "the student before training" if start is None else "the teacher"
        verdict = Verdict("no verdict", f"No verdict: {missing} was not evaluated.")
        return Decision(gain, teacher_gain, None, verdict)
    gap = ratio_interval(end - start, goal - start, seed=seed)
    means = f"{metric} {start.mean():.1f} before, {end.mean():.1f} after, teacher {goal.mean():.1f}"
    return Decision(gain, teacher_gain, gap, _verdict(start, end, goal, gain, teacher_gain, gap, means))


def _verdict(
    start: np.ndarray,
    end: np.ndarray,
    goal: np.ndarray,
    gain: Interval,
    teacher_gain: Interval,
    gap: Interval | None,
    means: str,
) -> Verdict:
    if len(end) == 1:
        return Verdict("no verdict", f"No verdict: one row is too few ({means}).")
    rows = f"{len(end):,} rows"
    if teacher_gain.high < 0:
        text = f"No verdict: the teacher does worse than the student before training on these {rows} ({means})."
        return Verdict("no verdict", text)
    if gap is None or teacher_gain.low <= 0:
        needed = rounded_rows(rows_needed(goal - start, goal - start)) if teacher_gain.estimate > 0 else None
        more = f"; about {needed:,} rows would show a difference of this size" if needed else ""
        text = (
            f"No verdict: the teacher's prompt makes no difference on these {rows} that is more than chance "
            f"({means}; teacher minus before {_points(teacher_gain)}){more}."
        )
        return Verdict("no verdict", text, needed)
    closed = f"the student closes {_percent(gap)} of the gap to the teacher on {rows} ({means})"
    if gain.low > 0 and gap.low >= HALF:
        return Verdict("works", f"It works: {closed}.")
    if gap.high < HALF:
        return Verdict("does not work", f"It does not work: {closed}.")
    wanted = [rows_needed(end - start - HALF * (goal - start), goal - start)]
    if gap.estimate >= HALF:
        wanted.append(rows_needed(end - start, end - start))
    needed = rounded_rows(max(wanted))
    would = f"about {needed:,} would do" if needed else "it is so close to one half that more would hardly decide it"
    return Verdict("no verdict", f"No verdict, too few rows: {closed}; {would}.", needed)


def rounded_rows(rows: float) -> int | None:
    """Return a number of rows to two digits, rounded up; None if nobody would collect so many."""
    if not rows <= MOST_ROWS:
        return None
    step = 10 ** max(math.floor(math.log10(rows)) - 1, 0)
    return math.ceil(rows / step) * step


def _percent(gap: Interval) -> str:
    if not gap.is_bounded:
        return f"{gap.estimate:.0%} (these rows do not bound it)"
    return f"{gap.estimate:.0%} ({gap.level:.0%} interval {gap.low:.0%} to {gap.high:.0%})"


def _points(gain: Interval) -> str:
    return f"{gain.estimate:.1f}, {gain.level:.0%} interval {gain.low:.1f} to {gain.high:.1f}"
