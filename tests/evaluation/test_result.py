"""The values of an evaluation: JSON there and back, and means over rows."""

import json
import math

import pytest

from trl_distill.evaluation.result import (
    AFTER,
    BEFORE,
    TEACHER,
    Comparison,
    Cost,
    Evaluation,
    Fidelity,
    Interval,
    Judgement,
    Money,
    Side,
    Timing,
    TokenRow,
    Verdict,
    summary,
)


def side(name, scores, fidelity=None):
    """Return a side of two rows."""
    return Side(
        name,
        f"student {name}",
        "model",
        prompts=("Q: a", "Q: bc"),
        prompt_tokens=(3, 4),
        completions=("x", "y y y"),
        tokens=(2, 4),
        finished=(True, False),
        repeats=(False, True),
        scores={"chrf": scores},
        fidelity=fidelity,
    )


@pytest.fixture
def evaluation():
    """Return an evaluation with a value in every field."""
    close = Fidelity((0.5, math.inf), (0.75, 0.25), (4, 1))
    return Evaluation(
        inputs=("a", "bc"),
        references=("x", "y"),
        sides=(side(BEFORE, (0.0, 50.0), close), side(AFTER, (80.0, math.nan)), side(TEACHER, (100.0, 100.0))),
        metric="chrf",
        gain=Interval(40.0, -math.inf, 60.5),
        teacher_gain=Interval(75.0, 60.0, 90.0, level=0.9),
        gap_closed=Interval(0.53, 0.1, math.inf),
        verdict=Verdict("no verdict", "Too few rows.", rows_needed=120),
        cost=Cost(
            600.0,
            12.5,
            2400.0,
            50.0,
            48.0,
            Timing(0.2, 1.5, 8),
            Timing(None, 0.5, 8),
            3.0,
            Money(9.0, 1.0, 4.0, 2.5, 312),
        ),
        judgement=Judgement("judge", (Comparison(AFTER, BEFORE, (1.0, math.nan), Interval(100.0, 100.0, 100.0), 1.0),)),
        token_rows=(TokenRow(1, ("y", " y"), (0.1, 2.0), (0.0, 0.5)),),
        settings={"max_new_tokens": 64, "stop": ["\n"]},
        versions={"torch": "2.13.0"},
    )


def test_an_evaluation_survives_json(evaluation):
    text = json.dumps(evaluation.to_dict(), allow_nan=False)
    assert repr(Evaluation.from_dict(json.loads(text))) == repr(evaluation)  # NaN is not equal to itself


def test_what_does_not_exist_is_null_and_comes_back(evaluation):
    bare = Evaluation(("a",), None, (), "chrf", None, None, None, Verdict("no verdict", "No teacher."))
    assert json.loads(json.dumps(bare.to_dict()))["gain"] is None
    assert Evaluation.from_dict(bare.to_dict()) == bare
    assert not bare.with_references
    assert evaluation.with_references


def test_a_later_versions_fields_are_ignored_and_a_missing_one_is_refused(evaluation):
    values = evaluation.to_dict()
    assert repr(Evaluation.from_dict({**values, "colour": "red"})) == repr(evaluation)
    del values["verdict"]
    with pytest.raises(TypeError, match="verdict"):
        Evaluation.from_dict(values)


def test_a_summary_leaves_out_rows_without_a_score_and_weights_tokens(evaluation):
    after = evaluation.to_dict()["sides"][1]["summary"]
    assert after == {
        "scores": {"chrf": 80.0},
        "length": 3.0,
        "finished": 0.5,
        "repeated": 0.5,
        "divergence": None,
        "agreement": None,
    }
    measured = side(BEFORE, (0.0, 0.0), Fidelity((0.5, 1.0, math.nan), (0.75, 0.25, math.nan), (3, 1, 0)))
    assert summary(measured)["divergence"] == pytest.approx((3 * 0.5 + 1.0) / 4)
    assert summary(measured)["agreement"] == pytest.approx((3 * 0.75 + 0.25) / 4)


def test_a_side_is_found_by_its_name(evaluation):
    assert evaluation.side(TEACHER).mean_score("chrf") == 100.0
    assert evaluation.side("other") is None
