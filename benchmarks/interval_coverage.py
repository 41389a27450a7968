"""How often intervals of the gap closed hold the truth, by simulated studies: python benchmarks/interval_coverage.py.

Each of 2,000 studies draws rows of which the gap that the student closes is known. The percentile and BCa intervals are
those of B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), over the same resampled rows.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from trl_distill.evaluation.interval import RESAMPLES, Bounds, ratio_bounds

STUDIES = 2000
ROWS = (20, 50, 200)
Array = NDArray[np.float64]
Study = Callable[[np.random.Generator, int], tuple[Array, Array, float]]


def exact_matches(rng: np.random.Generator, rows: int) -> tuple[Array, Array, float]:
    """Return gains of a student and a teacher that are right in 55 % and 70 % of the rows, of before's 30 %."""
    before, after, teacher = (rng.random((STUDIES, rows)) < share for share in (0.3, 0.55, 0.7))
    return 100.0 * after - 100.0 * before, 100.0 * teacher - 100.0 * before, 0.25 / 0.4


def similarities(rng: np.random.Generator, rows: int) -> tuple[Array, Array, float]:
    """Return gains in chrF of a student that closes three quarters of a gap of 30 points."""
    topic = 8 * rng.normal(size=(STUDIES, rows))
    before, after, teacher = (mean + topic + 15 * rng.normal(size=topic.shape) for mean in (30.0, 52.5, 60.0))
    return after - before, teacher - before, 0.75


def rare_failures(rng: np.random.Generator, rows: int) -> tuple[Array, Array, float]:
    """Return gains of a student that writes what the teacher does, but fails in a tenth of the rows."""
    teacher = 40 + 15 * rng.normal(size=(STUDIES, rows))
    fails = rng.random(teacher.shape) < 0.1
    after = np.where(fails, -20.0, teacher + 3 * rng.normal(size=teacher.shape))
    return after, teacher, 0.9 - 0.1 * 20 / 40


def all_but_some(rng: np.random.Generator, rows: int) -> tuple[Array, Array, float]:
    """Return gains of a student that is right in 95 % of the rows in which the teacher is, by exact match."""
    teacher = 100.0 * (rng.random((STUDIES, rows)) < 0.9)
    return np.where(rng.random(teacher.shape) < 0.95, teacher, 0.0), teacher, 0.95


def percentile(gain: Array, teacher_gain: Array) -> Bounds:
    """Return percentile intervals."""
    low, high = np.quantile(_resampled(gain, teacher_gain), [0.025, 0.975], axis=-1)
    return Bounds(gain.mean(-1) / teacher_gain.mean(-1), low, high)


def bias_corrected(gain: Array, teacher_gain: Array) -> Bounds:
    """Return BCa intervals."""
    normal = NormalDist()
    ratios = np.sort(_resampled(gain, teacher_gain), axis=-1)
    estimate = gain.mean(-1) / teacher_gain.mean(-1)
    below = ((ratios < estimate[:, None]).mean(-1) + (ratios <= estimate[:, None]).mean(-1)) / 2
    bias = np.array([normal.inv_cdf(min(max(share, 1e-3), 1 - 1e-3)) for share in below])
    left_out = (gain.sum(-1, keepdims=True) - gain) / (teacher_gain.sum(-1, keepdims=True) - teacher_gain)
    off = left_out.mean(-1, keepdims=True) - left_out
    spread = (off**2).sum(-1)
    skew = np.divide((off**3).sum(-1), 6 * spread**1.5, out=np.zeros_like(spread), where=spread > 0)
    ends = []
    for share in (0.025, 0.975):
        reach = bias + normal.inv_cdf(share)
        place = [normal.cdf(z) for z in bias + reach / (1 - skew * reach)]
        ends.append(ratios[np.arange(len(ratios)), (np.array(place) * (RESAMPLES - 1)).round().astype(int)])
    return Bounds(estimate, *ends)


def covered(bounds: Bounds, truth: float) -> tuple[float, float]:
    """Return the share of intervals that hold the truth, and the share of those that lie above it."""
    above = float((truth < bounds.low - 1e-9).mean())
    return 1 - above - float((bounds.high + 1e-9 < truth).mean()), above


def _resampled(gain: Array, teacher_gain: Array) -> Array:
    """Return [STUDIES, RESAMPLES] ratios of means over resampled rows."""
    rows = gain.shape[-1]
    weights = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).T
    return (gain @ weights) / (teacher_gain @ weights)


def main() -> None:
    """Print the table."""
    studies: tuple[Study, ...] = (exact_matches, similarities, rare_failures, all_but_some)
    print("| study | rows | percentile | BCa | here | here, too high |\n|---|---|---|---|---|---|")
    for study in studies:
        for rows in ROWS:
            gain, teacher_gain, truth = study(np.random.default_rng(rows), rows)
            with np.errstate(divide="ignore", invalid="ignore"):  # resamples in which the teacher gains nothing
                made = [bounds(gain, teacher_gain) for bounds in (percentile, bias_corrected, ratio_bounds)]
            shares = [covered(bounds, truth) for bounds in made]
            figures = " | ".join(f"{100 * share:.1f} %" for share in (*(held for held, _ in shares), shares[-1][1]))
            print(f"| {study.__name__.replace('_', ' ')} | {rows} | {figures} |")


if __name__ == "__main__":
    main()
