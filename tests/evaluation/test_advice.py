"""What looks wrong is said with the setting to change, and nothing is said of a run that went well."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from evaluation.test_page import evaluation, side

from trl_distill import LLMTrainingParams
from trl_distill.data.example import Example, Placeholder
from trl_distill.data.preflight import Preflight
from trl_distill.data.row_report import RowReport
from trl_distill.evaluation.advice import few_steps, of_evaluation, of_training, optimizer_steps
from trl_distill.evaluation.page.content import TrainedRow
from trl_distill.evaluation.result import AFTER, BEFORE, TEACHER, Evaluation, Side

EXAMPLE = Example("p", {}, {}, [1])
PARAMS = LLMTrainingParams(model="m", teacher_model="t")


def history(*divergences: float, name: str = "kl") -> list[dict[str, float]]:
    kind = {"loss": 1.0} if name == "kl" else {"eval_loss": 1.0}
    return [{**kind, name: value, "step": step} for step, value in enumerate(divergences, 1)]


def codes(entries) -> list[str]:
    return [entry.code for entry in entries]


def test_the_guides_defaults_on_twelve_rows_make_too_few_steps():
    steps, warmup = optimizer_steps(12, PARAMS)
    assert (steps, warmup) == (3, 1)
    (entry,) = few_steps(12, steps, warmup, PARAMS)
    assert entry.text == (
        "12 rows make 3 optimizer steps, the first at learning rate 0: too few to learn from; give "
        "--gradient-accumulation 1 and --epochs 20, or more rows."
    )


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"max_steps": 5}, "--max-steps 60"),
        ({"gradient_accumulation": 1, "epochs": 1}, "--epochs 20"),
        ({"gradient_accumulation": 4}, "--gradient-accumulation 1"),
    ],
)
def test_a_remedy_makes_enough_steps(settings, remedy):
    params = replace(PARAMS, **settings)
    (entry,) = few_steps(12, *optimizer_steps(12, params), params)
    assert remedy in entry.text


def test_enough_steps_say_nothing():
    assert list(few_steps(600, *optimizer_steps(600, PARAMS), PARAMS)) == []


@pytest.mark.parametrize(
    ("divergences", "remedy"),
    [((0.5, 0.5, 0.5, 0.5), "raise --lr"), ((0.5, 0.6, 0.7, 0.9), "lower --lr (it is 5e-05)")],
)
def test_a_divergence_that_does_not_fall_names_the_learning_rate(divergences, remedy):
    (entry,) = of_training(history(*divergences), [], PARAMS)
    assert entry.code == "divergence_not_falling"
    assert remedy in entry.text


@pytest.mark.parametrize(
    "entries",
    [
        history(0.5, 0.4, 0.3, 0.2),
        history(0.5, 0.5, 0.5),  # too few lines to tell
        history(0.005, 0.005, 0.005, 0.005),  # nothing is left to fall
        [*history(0.5, 0.5, 0.5, 0.5), *history(0.6, 0.5, 0.4, 0.3, name="eval_kl")],  # evaluation says more
    ],
)
def test_a_divergence_that_falls_says_nothing(entries):
    assert list(of_training(entries, [], PARAMS)) == []


def test_a_temperature_that_changes_says_nothing_of_the_divergence():
    assert list(of_training(history(0.5, 0.5, 0.5, 0.6), [], replace(PARAMS, distill_temperature_end=1.0))) == []


def test_a_student_that_does_not_stop_or_repeats_itself_is_reported():
    endless = TrainedRow(1, "p", "l", "\n" * 30, finished=False, repeats=True)
    fine = replace(endless, finished=True, repeats=False)
    unknown = replace(fine, finished=None)
    assert codes(of_training([], [endless, endless, fine], PARAMS)) == ["student_does_not_end", "student_repeats"]
    assert list(of_training([], [endless, fine], PARAMS)) == []
    assert list(of_training([], [unknown, unknown, replace(fine, written=None)], PARAMS)) == []


def test_a_student_that_learned_no_end_is_not_said_to_need_more_training():
    endless = TrainedRow(1, "p", "l", "a b c", finished=False)
    for cut, said in ((3, []), (1, ["student_does_not_end"])):
        preflight = Preflight(
            *("train", RowReport(3, 3, ()), {"teacher": 3}, 1.0, 2.0, (3, 3.0, 3), cut, 0, None, ("", "", "")),
            *(EXAMPLE, Placeholder(None, EXAMPLE)),
        )
        assert codes(of_training([], [endless] * 3, PARAMS, preflight)) == said


def test_an_evaluation_that_went_well_says_nothing():
    good = evaluation(sides=(side(BEFORE, ["x"] * 3, [0.0] * 3), side(AFTER, ["a"] * 3, [90.0] * 3),
                             side(TEACHER, ["a"] * 3, [100.0] * 3)))  # fmt: skip
    assert list(of_evaluation(good)) == []


def many(name: str, right: int) -> Side:
    """Return a side that is right in so many of 60 rows."""
    return side(name, ["x"] * 60, [100.0] * right + [0.0] * (60 - right))


def of_many(*sides: Side) -> Evaluation:
    return evaluation(inputs=("i",) * 60, references=("x",) * 60, sides=sides)


def test_a_teacher_that_is_worse_than_the_datas_completions_is_noticed():
    worse = of_many(many(BEFORE, 48), many(AFTER, 50), many(TEACHER, 30))
    (entry,) = of_evaluation(worse)
    assert entry.code == "teacher_worse_than_data"
    assert "it scores 50.0 (exact_match), the student before training 80.0" in entry.text
    assert "--distill-alpha" in entry.text
    assert list(of_evaluation(replace(worse, references=None))) == []


def test_a_student_that_is_a_little_ahead_of_its_teacher_is_no_reason_to_warn():
    assert list(of_evaluation(of_many(many(BEFORE, 0), many(AFTER, 60), many(TEACHER, 58)))) == []
    few = (side(AFTER, ["x"] * 3, [100.0, 100.0, 0.0]), side(TEACHER, ["x"] * 3, [100.0, 0.0, 0.0]))
    assert list(of_evaluation(evaluation(sides=few))) == []


def test_rows_without_a_score_are_counted_if_others_have_one():
    sides = tuple(side(name, ["x"] * 3, [80.0, math.nan, math.nan]) for name in (AFTER, TEACHER))
    (found,) = of_evaluation(replace(evaluation(sides=sides), references=("a", "", "")))
    assert found.code == "rows_without_score"
    assert found.text.startswith("2 of 3 rows have no completion of their own, and so no score; give each row one")


def test_what_does_not_end_saves_nothing_or_is_cut_is_noticed():
    endless = {"finished": (False,) * 3, "repeats": (True,) * 3}
    sides = (side(AFTER, ["x"] * 3, [50.0] * 3, **endless), side(TEACHER, ["a"] * 3, [60.0] * 3, **endless))
    cost = replace(evaluation().cost, student_tokens=170.0)
    found = list(of_evaluation(evaluation(sides=sides, cost=cost)))
    # a teacher that does not end either says that the limit is too low, not that the student learned too little
    assert codes(found) == ["student_repeats", "most_completions_cut", "nothing_saved"]
    assert "raise --distill-max-teacher-length (in an evaluation --max-new-tokens)" in found[1].text
    assert "--student-prompt-template" in found[2].text
