"""The verdict: when a student works, when it does not, and why there may be none."""

import math

import numpy as np
import pytest

from trl_distill.evaluation.verdict import decide


def scores(rows=100, *, before=30.0, after=56.0, teacher=60.0, noise=15.0, seed=0):
    """Return scores whose means are exactly these."""
    rng = np.random.default_rng(seed)

    def around(mean):
        values = rng.normal(size=rows)
        return mean + noise * (values - values.mean())

    return {"before": around(before), "after": around(after), "teacher": around(teacher)}


def test_a_student_that_closes_most_of_the_gap_works():
    found = decide(**scores(), metric="chrF")
    assert found.verdict.kind == "works"
    assert found.gain.estimate == pytest.approx(26)
    assert found.teacher_gain.estimate == pytest.approx(30)
    assert found.gap_closed.estimate == pytest.approx(26 / 30)
    assert found.gap_closed.low >= 0.5
    assert found.verdict.rows_needed is None
    assert found.verdict.sentence == (
        f"It works: the student closes 87% (95% interval {found.gap_closed.low:.0%} to {found.gap_closed.high:.0%}) of "
        "the gap to the teacher on 100 rows (chrF 30.0 before, 56.0 after, teacher 60.0)."
    )


def test_a_student_that_closes_less_than_half_does_not_work():
    found = decide(**scores(after=33.0))
    assert found.verdict.kind == "does not work"
    assert found.gap_closed.high < 0.5
    assert found.verdict.sentence.startswith("It does not work: the student closes 10%")


def test_a_student_that_got_worse_does_not_work():
    assert decide(**scores(after=10.0)).verdict.kind == "does not work"


def test_a_student_that_beats_its_teacher_works():
    found = decide(**scores(after=80.0))
    assert found.verdict.kind == "works"
    assert found.gap_closed.estimate > 1


@pytest.mark.parametrize("teacher", [30.0, 31.0])
def test_without_a_gain_of_the_teacher_there_is_no_verdict(teacher):
    found = decide(**scores(after=31.0, teacher=teacher))
    assert found.verdict.kind == "no verdict"
    assert "the teacher's prompt makes no difference on these 100 rows" in found.verdict.sentence
    assert ("rows would show" in found.verdict.sentence) == (found.verdict.rows_needed is not None) == (teacher > 30)


def test_sides_that_write_the_same_have_no_gap():
    same = [50.0, 20.0, 80.0]
    found = decide(before=same, after=same, teacher=same)
    assert found.verdict.kind == "no verdict"
    assert found.gap_closed is None
    assert found.gain.estimate == found.gain.low == found.gain.high == 0


def test_a_teacher_that_does_worse_is_said():
    found = decide(**scores(after=40.0, teacher=10.0))
    assert found.verdict.kind == "no verdict"
    assert "the teacher does worse than the student before training" in found.verdict.sentence


def test_too_few_rows_are_no_verdict_and_as_many_as_it_names_decide():
    few = decide(**scores(20, after=52.0))
    assert few.verdict.kind == "no verdict"
    needed = few.verdict.rows_needed
    assert 20 < needed < 500
    assert few.verdict.sentence.startswith("No verdict, too few rows: the student closes 73%")
    assert few.verdict.sentence.endswith(f"about {needed:,} would do.")
    rng = np.random.default_rng(1)
    decided = [
        decide(**{name: rng.choice(values, needed) for name, values in scores(20, after=52.0).items()}).verdict.kind
        for _ in range(40)
    ]
    assert 0.65 <= decided.count("works") / 40 <= 0.95  # four in five
    assert decided.count("does not work") == 0


def test_a_gap_that_is_half_closed_asks_for_no_number_of_rows():
    found = decide(**scores(after=45.0))
    assert found.verdict.kind == "no verdict"
    assert found.verdict.rows_needed is None
    assert "so close to one half" in found.verdict.sentence


def test_few_rows_that_all_agree_may_be_enough_and_one_never_is():
    for rows, begins in ((20, "It works"), (3, "No verdict, too few rows"), (1, "No verdict: one row is too few")):
        found = decide(before=[0.0] * rows, after=[100.0] * rows, teacher=[100.0] * rows)
        assert found.verdict.sentence.startswith(begins)
        assert found.gap_closed.estimate == 1


def test_rows_without_a_score_are_left_out_of_all_sides():
    whole = scores(60)
    after = [*whole["after"], math.nan, 0.0]
    other = {name: [*whole[name], 0.0, math.nan] for name in ("before", "teacher")}
    assert decide(after=after, **other) == decide(**whole)
    nothing = decide(before=[math.nan], after=[1.0], teacher=[1.0], metric="json")
    assert nothing.verdict.sentence == "No verdict: no row has a score of json."


@pytest.mark.parametrize(("side", "said"), [("before", "the student before training"), ("teacher", "the teacher")])
def test_a_missing_side_leaves_no_verdict(side, said):
    found = decide(**{**scores(), side: None})
    assert found.verdict.sentence == f"No verdict: {said} was not evaluated."
    assert found.gap_closed is None
    assert (found.gain is None) == (side == "before")
