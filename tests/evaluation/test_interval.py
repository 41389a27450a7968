"""Intervals of means and ratios: studies of known truth, few rows, and rows that all agree."""

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import (
    STUDIES,
    all_but_some,
    covered,
    exact_matches,
    percentile,
    rare_failures,
    similarities,
)
from trl_distill.evaluation.interval import mean_bounds, mean_interval, ratio_bounds, ratio_interval, rows_needed
from trl_distill.evaluation.result import Interval


@pytest.mark.parametrize("rows", [50, 100, 200])
@pytest.mark.parametrize("study", [exact_matches, similarities])
def test_the_interval_of_the_gap_closed_holds_the_truth_in_19_of_20_studies(study, rows):
    gain, teacher_gain, truth = study(np.random.default_rng(rows), rows)
    share, above = covered(ratio_bounds(gain, teacher_gain), truth)
    assert 0.93 <= share <= 0.97
    assert above <= 0.035
    share, _ = covered(mean_bounds(teacher_gain), {"exact_matches": 40.0}.get(study.__name__, 30.0))
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("rows", [5, 20, 50])
@pytest.mark.parametrize("study", [exact_matches, similarities, rare_failures, all_but_some])
def test_few_rows_and_rare_failures_claim_no_more_than_they_show(study, rows):
    gain, teacher_gain, truth = study(np.random.default_rng(rows), rows)
    share, above = covered(ratio_bounds(gain, teacher_gain), truth)
    assert share >= 0.93
    assert above <= 0.05


def test_a_percentile_interval_would_claim_too_much():
    gain, teacher_gain, truth = rare_failures(np.random.default_rng(20), 20)
    assert covered(percentile(gain, teacher_gain), truth)[0] < 0.9
    assert covered(ratio_bounds(gain, teacher_gain), truth)[0] > 0.93


def test_one_study_has_the_interval_of_many():
    gain, teacher_gain, _ = similarities(np.random.default_rng(0), 40)
    many, one = ratio_bounds(gain, teacher_gain), ratio_interval(gain[7], teacher_gain[7])
    assert (one.estimate, one.low, one.high) == pytest.approx((many.estimate[7], many.low[7], many.high[7]))
    assert one.estimate == pytest.approx(gain[7].mean() / teacher_gain[7].mean())
    assert one == ratio_interval(gain[7], teacher_gain[7])


def test_the_ends_do_not_depend_on_the_unit_or_the_order_of_the_rows():
    gain, teacher_gain, _ = similarities(np.random.default_rng(0), 60)
    x, y = gain[0], teacher_gain[0]
    once, scaled = ratio_interval(x, y), ratio_interval(x / 100, y / 100)
    assert (scaled.low, scaled.high) == pytest.approx((once.low, once.high))
    mixed = ratio_interval(x[::-1], y[::-1])
    assert (mixed.low, mixed.high) == pytest.approx((once.low, once.high), abs=0.05)


def test_rows_that_all_agree_are_no_certainty():
    few, many = (ratio_interval(np.full(rows, 100.0), np.full(rows, 100.0)) for rows in (5, 100))
    assert few.estimate == many.estimate == 1.0
    assert few.low < 0.5 < many.low < 1.0 < many.high < few.high
    assert mean_interval(np.full(5, 100.0), limits=(-100, 100)).low < 50.0


def test_a_denominator_that_may_be_zero_bounds_nothing():
    rng = np.random.default_rng(0)
    y = 20 * rng.normal(size=30)
    y += 1.0 - y.mean()
    mean = mean_interval(y, limits=(-100, 100))
    assert mean.low < 0 < mean.high
    wide = ratio_interval(y + rng.normal(size=30), y)
    assert (wide.low, wide.high) == (-math.inf, math.inf)
    assert ratio_interval(y, np.zeros(30)) is None


def test_one_row_bounds_nothing_and_no_row_is_refused():
    assert mean_interval([3.0], limits=(-100, 100)) == Interval(3.0, -100, 100)
    assert mean_interval([0.0], limits=(-100, 100)) == Interval(0.0, -100, 100)
    one = ratio_interval([3.0], [4.0])
    assert (one.estimate, one.low, one.high) == (0.75, -math.inf, math.inf)
    with pytest.raises(ValueError, match="no row"):
        mean_interval([], limits=(0, 1))
    with pytest.raises(ValueError, match="shape"):
        ratio_interval([1.0, 2.0], [1.0])


def test_many_rows_are_resampled_in_parts(monkeypatch):
    gain, teacher_gain, _ = similarities(np.random.default_rng(0), 60)
    whole = ratio_interval(gain[0], teacher_gain[0])
    monkeypatch.setattr("trl_distill.evaluation.interval.LARGEST", 60 * 7)
    assert ratio_interval(gain[0], teacher_gain[0]) == whole


def test_as_many_rows_as_are_needed_show_the_difference_in_four_of_five_studies():
    rng = np.random.default_rng(0)
    pilot = rng.normal(size=40)
    pilot = 5 + 20 * (pilot - pilot.mean()) / pilot.std(ddof=1)  # a mean of 5 and a deviation of 20
    rows = math.ceil(rows_needed(pilot, pilot))
    assert 40 < rows < 200
    bounds = mean_bounds(5 + 20 * rng.normal(size=(STUDIES, rows)))
    assert (bounds.low > 0).mean() == pytest.approx(0.8, abs=0.03)
    assert rows_needed(np.array([1.0, -1.0]), np.array([1.0, -1.0])) == math.inf
