"""Metrics by name: what each counts, the default, what is refused, and repetition."""

import math
import sys

import pytest

from trl_distill.errors import DataError, ParamsError, UsageError
from trl_distill.evaluation.metrics import default_metric, metric_named, metrics_for, repeats, scores_of


def score(name, completion, reference):
    """Return one score."""
    return scores_of([metric_named(name)], [completion], [reference])[name][0]


@pytest.mark.parametrize(
    ("name", "completion", "reference", "expected"),
    [
        ("exact_match", " New\n York ", "New York", 100),
        ("exact_match", "new york", "New York", 0),
        ("exact_match", "", "", 100),
        ("contains", "It is 12.", "12", 100),
        ("contains", "It is 123.", "12", 0),
        ("contains", "答案是北京。", "北京", 100),
        ("contains", "Costs: $5 (about)", "$5", 100),
        ("json_valid", '{"a": [1, 2]}', "", 100),
        ("json_valid", '```json\n{"a": 1}\n```', "", 100),
        ("json_valid", '{"a": 1} is it', "", 0),
        ("json_valid", '{"a": NaN}', "", 0),
        ("json", '{"b": 2.0, "a": 1}', '{"a": 1, "b": 2}', 100),
        ("json", '{"a": 1, "b": 3}', '{"a": 1, "b": 2}', 50),
        ("json", '{"a": 1, "c": 3}', '{"a": 1, "b": 2}', 100 / 3),
        ("json", '{"a": true}', '{"a": 1}', 0),
        ("json", '{"a": {"b": [1, 2]}, "c": []}', '{"a": {"b": [1, 5]}, "c": []}', 200 / 3),
        ("json", "not json", '{"a": 1}', 0),
        ("json", "[" * 100_000, '{"a": 1}', 0),
        ("regex", "The year is 1969.", r"\b19\d\d\b", 100),
        ("regex", "The year is 2024.", r"\b19\d\d\b", 0),
        (r"regex:^(positive|negative)$", "so\npositive", "so\npositive", 100),
        (r"regex:\d+ points", "a total of 12 points", "", 100),
        (r"regex:#### (-?\d+)", "2+2 = 4\n#### 4", "It adds up.\n#### 4", 100),
        (r"regex:#### (-?\d+)", "#### 3, no: #### 4", "4", 100),
        (r"regex:#### (-?\d+)", "the answer is 4", "4", 0),
    ],
)
def test_a_metric_counts_what_it_says(name, completion, reference, expected):
    assert score(name, completion, reference) == pytest.approx(expected)


def test_chrf_is_sacrebleus():
    pytest.importorskip("sacrebleu")
    assert score("chrf", "hello world", "hello there") == pytest.approx(31.197, abs=1e-3)
    assert score("chrf", "the cat sat", "the cat sat") == 100
    assert score("chrf", "", "") == 100
    assert score("chrf", "", "abc") == 0


def test_chrf_without_sacrebleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UsageError, match="pip install sacrebleu"):
        metric_named("chrf")


def test_the_default_is_exact_match_for_short_references_only():
    assert default_metric(["Paris", "the United Kingdom of Great", None]) == "exact_match"
    assert default_metric(["Paris", "it is the capital of France"]) == "chrf"
    assert default_metric(["yes, no, and so on."]) == "exact_match"  # punctuation is no word
    assert default_metric(["积极", "消极"]) == "exact_match"
    assert default_metric(["法国的首都是巴黎。"]) == "chrf"
    assert default_metric(None) == "chrf"


def test_the_first_metric_decides_and_the_usual_ones_are_added():
    pytest.importorskip("sacrebleu")
    assert [metric.name for metric in metrics_for(["json"], ['{"a": 1}'])] == [
        "json",
        "json_valid",
        "chrf",
        "exact_match",
    ]
    assert [metric.name for metric in metrics_for([], ["Paris"])] == ["exact_match", "chrf"]
    assert [metric.name for metric in metrics_for([], None)] == ["chrf", "exact_match"]


def test_a_row_without_a_usable_reference_has_no_score():
    metrics = [metric_named(name) for name in ("exact_match", "json", "json_valid")]
    scores = scores_of(metrics, ["1", "1", "1"], ["1", None, "one"])
    assert scores["exact_match"][0] == 100
    assert math.isnan(scores["exact_match"][1])
    assert scores["exact_match"][2] == 0
    assert math.isnan(scores["json"][1])
    assert math.isnan(scores["json"][2])  # the teacher's completion need not be JSON
    assert scores["json_valid"] == (100, 100, 100)


@pytest.mark.parametrize(
    ("name", "reference", "error", "said"),
    [
        ("exactmatch", "a", ParamsError, "Did you mean 'exact_match'"),
        ("regex:(", "a", ParamsError, "not a regular expression"),
        ("regex:" + "(" * 9999, "a", ParamsError, "not a regular expression"),
        ("regex", "a{99999999999}", DataError, "not a regular expression"),
        ("no_such_module:score", "a", ParamsError, "cannot be imported"),
        ("math:pi", "a", ParamsError, "not a function"),
        ("math:exp", "a", ParamsError, "not a function of a completion and a reference"),
        ("json", "{a: 1}", DataError, "row 2"),
        ("regex", "(", DataError, "row 2"),
        ("contains", " ", DataError, "row 2"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_written(name, reference, error, said):
    with pytest.raises(error, match=said.replace("(", r"\(")):
        metrics_for([name], [None, reference])


def test_a_pattern_in_the_reference_needs_references():
    with pytest.raises(ParamsError, match="regex:PATTERN"):
        metrics_for(["regex"], None)


def test_a_function_is_found_in_the_working_directory_and_returns_shares(tmp_path, monkeypatch):
    (tmp_path / "own_metric_of_a_test.py").write_text(
        "def half(completion, reference):\n    return 0.5\n"
        "def same(completion, reference):\n    return completion == reference\n"
        "def points(completion, reference):\n    return 87.0\n"
        "def words(completion, reference):\n    return 'good'\n"
        "def broken(completion, reference):\n    return 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert score("own_metric_of_a_test:half", "a", "b") == 50
    assert score("own_metric_of_a_test:same", "a", "a") == 100
    assert sys.path == path
    for name, said in (("points", "87.0"), ("words", "'good'"), ("broken", "ZeroDivisionError")):
        with pytest.raises(ParamsError, match=said):
            score(f"own_metric_of_a_test:{name}", "a", "b")


@pytest.mark.parametrize(
    ("completion", "finished", "expected"),
    [
        ("\n" * 30, False, True),
        ("The cat sat. The cat sat. The cat sat.", True, True),
        ("So: the cat sat on the mat, the cat sat on the mat, the cat sat on the mat, the ca", False, True),
        ("I think I think I think so", True, False),  # it got out of it
        ("very very good", True, False),
        ("ha ha ha", True, False),  # a phrase of one word
        ("0, 0, 0, 0]", True, False),
        ("好的。好的。好的。", True, True),
        ("是是是是是是", True, True),
        ("An ordinary answer, of two sentences. It ends here.", True, False),
        ("", True, False),
        ("x", False, False),
    ],
)
def test_a_completion_repeats_if_it_ends_in_one_phrase_three_times(completion, finished, expected):
    assert repeats(completion, finished=finished) is expected
