"""Confidence intervals of a mean and of a ratio of means over paired rows, by resampling the rows.

Percentile and bias-corrected (BCa) bootstrap intervals of the gap closed hold the truth too rarely at the sizes of
held-out data, the more so if a few rows decide. What holds is the bootstrap-t interval of Fieller's pivot: whether
theta is the ratio of the means of x and y is asked of the mean of x - theta y divided by its standard error, and the
quantiles of that come from resampled rows instead of Student's t (E. C. Fieller, "Some problems in interval
estimation", JRSS B 16, 1954; J. T. G. Hwang, "Fieller's problems and resampling techniques", Statistica Sinica 5,
1995). It is unbounded if the rows cannot tell the denominator from 0.

Rows that all agree say little about the row that has not been seen yet, and resampling them shows none. Therefore the
standard error counts two rows more, one at nothing and one at twice the mean, as the intervals of a proportion do that
add successes and failures (A. Agresti and B. A. Coull, "Approximate is better than exact for interval estimation of
binomial proportions", The American Statistician 52, 1998), and no quantile is below that of the normal distribution.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .result import Interval

RESAMPLES = 2000
LARGEST = 20_000_000  # counts of resampled rows that are held at a time
Array = NDArray[np.float64]


class Bounds(NamedTuple):
    """Intervals of many studies of n rows each.

    Attributes:
        estimate: [...] the figure on these rows.
        low: [...] lower end, -inf if there is none.
        high: [...] upper end, inf if there is none.
    """

    estimate: Array
    low: Array
    high: Array


def mean_interval(values: ArrayLike, *, limits: tuple[float, float], level: float = 0.95, seed: int = 0) -> Interval:
    """Return the mean of a figure over n rows and its interval.

    Args:
        values: [n] one figure a row; a difference of two sides makes the interval a paired one.
        limits: The least and the greatest value that the figure can have, which the ends stay within.
        level: Confidence.
        seed: Resampling seed.

    Raises:
        ValueError: There is no row.
    """
    found = _interval(mean_bounds(_rows(values), level=level, seed=seed), level)
    return replace(found, low=max(found.low, limits[0]), high=min(found.high, limits[1]))


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Return the ratio of two means over the same n rows and its interval; None if the denominator's mean is 0.

    Args:
        numerator: [n] one figure a row.
        denominator: [n] the other figure of the same rows.
        level: Confidence.
        seed: Resampling seed.

    Raises:
        ValueError: There is no row, or the numbers of rows differ.
    """
    bounds = ratio_bounds(_rows(numerator), _rows(denominator), level=level, seed=seed)
    return _interval(bounds, level) if math.isfinite(bounds.estimate) else None


def mean_bounds(values: Array, *, level: float = 0.95, seed: int = 0) -> Bounds:
    """Return the interval of the mean for each study of `values` [..., n]; see `mean_interval`."""
    mean = values.mean(-1)
    error = _standard_error(values, values)
    below, above = _quantiles(values - mean[..., None], values, level, seed)
    with np.errstate(invalid="ignore"):
        reaches = [np.where(np.isinf(quantile), np.inf, quantile * error) for quantile in (below, above)]
    return Bounds(mean, mean - reaches[0], mean + reaches[1])  # of one row everything, that of 0 too


def ratio_bounds(numerator: Array, denominator: Array, *, level: float = 0.95, seed: int = 0) -> Bounds:
    """Return the interval of the ratio of means for each study of two arrays [..., n]; see `ratio_interval`.

    A ratio over a mean of 0 is NaN.

    Raises:
        ValueError: The shapes differ.
    """
    if numerator.shape != denominator.shape:
        raise ValueError(f"numerator has shape {numerator.shape} and denominator {denominator.shape}.")
    x, y = numerator.mean(-1), denominator.mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(y == 0, np.nan, x / y)
    residual = numerator - np.nan_to_num(ratio)[..., None] * denominator
    below, above = _quantiles(residual, denominator, level, seed)
    variances = (
        _standard_error(numerator, denominator) ** 2,
        _variance(denominator, denominator),
        _variance(numerator, denominator),
    )
    return Bounds(ratio, _fieller(x, y, *variances, below)[0], _fieller(x, y, *variances, above)[1])


def rows_needed(values: Array, scale: Array, *, level: float = 0.95, power: float = 0.8) -> float:
    """Return how many rows like these have an interval of their mean that leaves out 0, with a probability of `power`.

    Args:
        values: [n] one figure a row.
        scale: [n] the figure that the two unseen rows are made from.
        level: Confidence of the interval.
        power: The probability, if the mean of these rows is right.

    Returns:
        Rows, more than n; inf if the mean is 0, or there are fewer than two rows.
    """
    count, mean = values.shape[-1], abs(float(values.mean()))
    if count < 2 or mean == 0:
        return math.inf
    normal = NormalDist()
    quantile = (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) ** 2
    # mean^2 = quantile (variance / rows + 2 scale^2 / rows^2)
    variance, unseen = quantile * float(values.var(ddof=1)), 2 * quantile * float((scale**2).mean())
    rows = (variance + math.sqrt(variance**2 + 4 * mean**2 * unseen)) / (2 * mean**2)
    return max(rows, count + 1.0)


def _rows(values: ArrayLike) -> Array:
    rows = np.asarray(values, dtype=np.float64)
    if rows.size == 0:
        raise ValueError("there is no row.")
    return rows


def _interval(bounds: Bounds, level: float) -> Interval:
    return Interval(float(bounds.estimate), float(bounds.low), float(bounds.high), level)


def _quantiles(residual: Array, scale: Array, level: float, seed: int) -> tuple[Array, Array]:
    """Return how many standard errors the mean of a residual, which is 0, reaches above and below it by chance."""
    count = residual.shape[-1]
    tail = (1 - level) / 2
    least = NormalDist().inv_cdf(1 - tail)
    if count == 1:
        return np.full(residual.shape[:-1], np.inf), np.full(residual.shape[:-1], np.inf)
    extra = _unseen(scale)[..., None]
    generator, block = np.random.default_rng(seed), max(1, LARGEST // count)
    parts = []
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size).T / count
        mean, square = residual @ weights, residual**2 @ weights
        error = np.sqrt(np.maximum(square - mean**2, 0) / (count - 1) + extra)
        parts.append(np.divide(mean, error, out=np.zeros_like(mean), where=error > 0))
    low, high = np.quantile(np.concatenate(parts, -1), [tail, 1 - tail], axis=-1)
    return np.maximum(high, least), np.maximum(-low, least)


def _standard_error(values: Array, scale: Array) -> Array:
    """Return [...] the standard error of a mean, with the two rows that may be unseen."""
    return np.sqrt(_variance(values, values) + _unseen(scale))


def _variance(values: Array, others: Array) -> Array:
    """Return [...] the covariance of two means over the same rows; NaN for one row."""
    count = values.shape[-1]
    centred = values - values.mean(-1, keepdims=True)
    return (centred * (others - others.mean(-1, keepdims=True))).sum(-1) / (count * max(count - 1, 1))


def _unseen(scale: Array) -> Array:
    """Return [...] what two rows, one at 0 and one at twice the root mean square, add to the variance of a mean."""
    return 2 * (scale**2).mean(-1) / scale.shape[-1] ** 2


def _fieller(x: Array, y: Array, of_x: Array, of_y: Array, of_both: Array, quantile: Array) -> tuple[Array, Array]:
    """Return the ends of all theta with (x - theta y)^2 at most quantile^2 times its variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        square = quantile**2
        a, b, c = y**2 - square * of_y, x * y - square * of_both, x**2 - square * of_x
        root = np.sqrt(np.maximum(b**2 - a * c, 0))
        bounded = a > 0
        return np.where(bounded, (b - root) / a, -np.inf), np.where(bounded, (b + root) / a, np.inf)
