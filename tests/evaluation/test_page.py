"""The page and its data, written from values: text of others, size, order of rows, charts."""

from __future__ import annotations

import json
import re

import pytest
from evaluation.pages import check_inert

from trl_distill.evaluation.page.content import Advice, Report, Step, TrainedRow, Training, charts_of, curve
from trl_distill.evaluation.page.render import MOST_BYTES, render
from trl_distill.evaluation.page.text import visible, with_differences
from trl_distill.evaluation.page.write import write_report
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
)

HOSTILE = (
    '</td><script>alert(\'x\')</script><img src=x onerror=alert(1)> " onload="x" {{ 7 * 7 }} {% raw %} &lt; '
    "\u202egnp.exe\u2066 \x00\x1b[31m \ud800 \u200b ]]> <!-- ' -->"
)
HISTORY = (
    {"loss": 2.0, "kl": 0.5, "ce": 1.5, "top1_agreement": 0.25, "learning_rate": 1e-4, "step": 1},
    {"loss": 1.0, "kl": 0.25, "ce": 1.0, "top1_agreement": 0.5, "learning_rate": 5e-5, "step": 2},
    {"eval_loss": 1.25, "eval_kl": 0.375, "eval_ce": 1.1, "step": 2},
)


def training(**changes) -> Training:
    """Return a run."""
    values = {
        "student": "small", "teacher": "large", "prompts": {"student": "{input}", "teacher": "Long. {input}"},
        "steps": 2, "seconds": 3.0, "seed": 42, "computed": "on cpu", "history": HISTORY, "metrics": {"a": 1.5},
        "settings": {"lr": 1e-4, "model": "small"}, "changed": ("lr",), "data": {"train": {"rows": 12}},
    }  # fmt: skip
    return Training(**{**values, **changes})


def side(name: str, completions: list[str], scores: list[float], **changes) -> Side:
    """Return a side whose completions all ended."""
    rows = len(completions)
    values = {
        "name": name, "label": f"label of {name}", "model": "m", "prompts": ("p",) * rows, "prompt_tokens": (7,) * rows,
        "completions": tuple(completions), "tokens": (3,) * rows, "finished": (True,) * rows,
        "repeats": (False,) * rows, "scores": {"exact_match": tuple(scores)},
    }  # fmt: skip
    return Side(**{**values, **changes})


def evaluation(**changes) -> Evaluation:
    """Return an evaluation of three rows: one better, one the same, one worse after training."""
    values = {
        "inputs": ("better", "same", "worse"),
        "references": ("a b", "c", "d"),
        "sides": (
            side(BEFORE, ["x", "c", "d"], [0.0, 100.0, 100.0], fidelity=Fidelity((2.0,) * 3, (0.5,) * 3, (1,) * 3)),
            side(AFTER, ["a b", "c", "y"], [100.0, 100.0, 0.0], fidelity=Fidelity((0.5,) * 3, (0.75,) * 3, (1,) * 3)),
            side(TEACHER, ["a b", "c", "d"], [100.0, 100.0, 100.0]),
        ),
        "metric": "exact_match",
        "gain": Interval(10.0, 5.0, 15.0),
        "teacher_gain": Interval(20.0, 15.0, 25.0),
        "gap_closed": Interval(0.75, 0.5, 1.0),
        "verdict": Verdict("works", "It works: three quarters of the gap are closed."),
        "cost": Cost(
            163.0,
            17.0,
            600.0,
            60.0,
            10.0,
            Timing(0.2, 0.5, 20),
            Timing(0.1, 0.25, 20),
            2.0,
            Money(80.0, 20.0, 50.0, 3.0, 9),
        ),
        "judgement": Judgement("judge", (Comparison(AFTER, TEACHER, (0.5,) * 3, Interval(50.0, 40.0, 60.0), 1.0),)),
        "token_rows": (TokenRow(1, ("c", " d"), (3.0, 0.01), (0.3, 0.001)),),
        "settings": {"batch_size": 16},
        "versions": {"torch": "2"},
    }
    return Evaluation(**{**values, **changes})


def report(**parts) -> Report:
    return Report("project", "2026-01-02T03:04:05+00:00", **parts)


def test_a_page_of_a_run_says_how_to_evaluate():
    steps = Step("Ask it", "python x"), Step("Compare it", "aitraining evaluate x")
    page = check_inert(render(report(training=training(), next_steps=steps)))
    assert "Not evaluated yet" in page.text
    assert page.text.index("aitraining evaluate x") < page.text.index("Loss") < page.text.index("python x")


def test_a_page_of_an_evaluation_begins_with_the_verdict_and_the_table():
    page = check_inert(render(report(training=training(), evaluation=evaluation())))
    places = [page.text.index(text) for text in ("It works: three", "label of before", "Divergence from", "Row 3")]
    assert places == sorted(places)
    for figure in ("0.75", "0.50 to 1.00, 95% interval", "66.7", "90%", "500.0", "250.0", "80.00", "50% (40 to 60%)"):
        assert figure in page.text, figure


def test_a_gap_that_the_rows_do_not_bound_and_rows_without_a_score_are_called_so():
    sides = tuple(
        side(name, ["a", "b", "c"], [score, float("nan"), score])
        for name, score in ((BEFORE, 0.0), (AFTER, 50.0), (TEACHER, 100.0))
    )
    unbounded = evaluation(gap_closed=Interval(0.5, float("-inf"), float("inf")), sides=sides)
    page = check_inert(render(report(evaluation=unbounded)))
    assert "these rows do not bound it" in page.text
    assert "inf to inf" not in page.text
    assert "mean over 2 rows" in page.text


def test_an_evaluation_without_a_run_a_cost_or_a_gap_has_a_page():
    bare = evaluation(cost=None, judgement=None, gap_closed=None, references=None, token_rows=(), settings={})
    page = check_inert(render(report(evaluation=bare)))
    assert "against the teacher's completions" in page.text
    assert "Gap closed" not in page.text


def test_rows_that_got_worse_come_first_with_their_differences_marked():
    page = render(report(evaluation=evaluation()))
    heads = re.findall(r"<b>Row (\d)</b>.*?<span class=\"trend (\w+)\"", page)
    assert heads[:3] == [("3", "worse"), ("1", "better"), ("2", "same")]
    assert "1 of 3 rows got worse" in page
    assert "<ins>y</ins>" in page
    assert "<del>d</del>" in page


def test_tokens_are_coloured_by_their_divergence_before_and_after():
    page = render(report(evaluation=evaluation()))
    strips = re.findall(r'<span class="(h\d)" title="(.*?)">(.*?)</span>', page)
    assert strips == [
        ("h7", "c: 3 nats", "c"), ("h0", " d: 0.01 nats", " d"),
        ("h4", "c: 0.3 nats", "c"), ("h0", " d: 0.001 nats", " d"),
    ]  # fmt: skip
    assert "1.5 nats per token" in page
    assert "0.15 nats per token" in page


def test_the_dots_of_the_charts_are_the_log_lines():
    page = check_inert(render(report(training=training())))
    assert "training, step 1: 2" in page.titles
    assert "training, step 2: 0.25 nats per token" in page.titles
    assert "evaluation, step 2: 0.375 nats per token" in page.titles
    assert "training, step 2: 50.0%" in page.titles


def test_a_curve_leaves_out_what_is_not_finite_and_the_summary_of_a_run():
    history = [{"loss": float("nan"), "step": 1}, {"loss": 2.0, "step": 3}, {"train_loss": 9.0, "step": 3}]
    assert curve(history, "loss") == ((3.0, 2.0),)
    assert [chart.title for chart in charts_of(history)] == ["Loss"]
    assert charts_of([]) == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_axes_have_few_round_numbers_that_hold_all_points(scale):
    history = [{"loss": scale * value, "step": step} for step, value in enumerate((3.7, 0.2, 1.1), start=7)]
    svg = str(charts_of(history)[0].svg())
    labels = [float(text) for text in re.findall(r'text-anchor="end">([^<]*)<', svg)]
    assert 3 <= len(labels) <= 7
    assert labels[0] <= 0.2 * scale
    assert labels[-1] >= 3.7 * scale
    heights = [float(text) for text in re.findall(r'cy="([^"]*)"', svg)]
    assert 0 <= min(heights) < max(heights) <= 230


def test_a_single_point_and_a_long_history_are_plotted():
    assert "<circle" in str(charts_of([{"loss": 0.0, "step": 0}])[0].svg())
    long = charts_of([{"loss": 1.0 / step, "step": step} for step in range(1, 20_000)])[0].svg()
    assert len(long) < 10_000


@pytest.mark.parametrize("place", ["name", "student", "prompt", "learned", "written", "pieces", "settings", "advice"])
def test_text_of_others_is_only_shown(place):
    row = {
        "prompt": "p",
        "learned": "l",
        "written": "w",
        "pieces": ("t",),
        "divergence": (0.3,),
        "cross_entropy": (1.0,),
    }
    row |= {place: (HOSTILE,) if place == "pieces" else HOSTILE} if place in row else {}
    more = {"student": HOSTILE} if place == "student" else {}
    more |= {"settings": {"lr": HOSTILE}} if place == "settings" else {}
    run = training(rows=(TrainedRow(1, **row),), **more)
    name = HOSTILE if place == "name" else "project"
    advice = (Advice("code", HOSTILE),) if place == "advice" else ()
    text = render(Report(name, "2026-01-02T03:04:05+00:00", run, advice=advice))
    text.encode()  # a lone surrogate could not be written
    page = check_inert(text)
    assert "<script>alert('x')</script>" in re.sub(r"\s+", " ", page.text)
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\u202e\u2066\x00\x1b\u200b]", text)
    for mark in ("⟨U+202E⟩", "␀", "␛", "⟨U+D800⟩", "⟨U+200B⟩"):
        assert mark in page.text


def test_hostile_text_in_an_evaluation_is_only_shown():
    sides = (side(AFTER, [HOSTILE], [0.0], label=HOSTILE, model=HOSTILE), side(TEACHER, [HOSTILE[::-1]], [100.0]))
    found = evaluation(
        inputs=(HOSTILE,), references=(HOSTILE,), sides=sides, verdict=Verdict("no verdict", HOSTILE),
        settings={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}, token_rows=(TokenRow(0, (HOSTILE,), (), (1.0,)),),
    )  # fmt: skip
    check_inert(render(report(evaluation=found)))


def test_what_cannot_be_seen_is_written_out():
    assert str(visible("a\nb\tc")) == 'a<i class="mark">↵</i>\nb<i class="mark">⇥</i>c'
    assert str(visible("\n" * 30)) == '<i class="mark">↵ × 30</i>\n'
    assert str(visible("Zoë 👩‍🔬 <b>")) == "Zoë 👩‍🔬 &lt;b&gt;"


def test_differences_are_marked_by_words():
    assert str(with_differences("the cat sat", "the dog sat", "ins")) == "the <ins>cat</ins> sat"
    assert str(with_differences("the cat", "the cat", "ins")) == "the cat"
    assert str(with_differences("the <b>", "the <i>", "del")) == "the &lt;<del>b</del>&gt;"
    assert str(with_differences("a b c d e", "a x y e", "ins")) == "a <ins>b c d</ins> e"
    assert str(with_differences("one two\nthree", "one  two three", "ins")) == 'one two<i class="mark">↵</i>\nthree'
    assert str(with_differences("\n" * 9, "x", "ins")) == '<ins><i class="mark">↵ × 9</i>\n</ins>'
    assert str(with_differences("", "x", "ins")) == ""
    assert str(with_differences(" the cat", "the cat", "ins")) == " the cat"
    assert str(with_differences("quite another", "thing", "ins")) == "<ins>quite another</ins>"


def test_what_both_texts_have_is_marked_in_neither():
    target, written = "a b c d e f g h i j", "g h i j a b c d e f x"
    kept = [re.sub(r"<(ins|del)>.*?</\1>", "", str(with_differences(*texts))).split()
            for texts in ((written, target, "ins"), (target, written, "del"))]  # fmt: skip
    assert kept[0] == kept[1] != []


@pytest.mark.parametrize("characters", [300, 20_000])
def test_a_page_of_long_texts_is_at_most_300_kilobytes(characters):
    rows = 400
    texts = [f"<{i} & " * (characters // 6) for i in range(rows)]
    sides = tuple(side(name, texts, [0.0] * rows) for name in (BEFORE, AFTER, TEACHER))
    pieces = ("<&>",) * 3000
    found = evaluation(
        inputs=tuple(texts), references=tuple(texts), sides=sides,
        token_rows=tuple(TokenRow(i, pieces, (1.0,) * 3000, (0.1,) * 3000) for i in range(8)),
    )  # fmt: skip
    history = tuple({"loss": 1.0, "kl": 0.5, "step": step} for step in range(1, 5000))
    settings = {f"setting_{i}": "<" * 2000 for i in range(100)}
    page = render(
        report(training=training(history=history, settings=settings, changed=tuple(settings)), evaluation=found)
    )
    assert len(page.encode()) <= MOST_BYTES
    parsed = check_inert(page)
    assert "more characters" in parsed.text
    assert "more tokens" in parsed.text or "Token by token" not in parsed.text


def test_an_evaluation_keeps_the_run_that_its_project_was(tmp_path):
    seen = [Advice("divergence_not_falling", "The divergence does not fall."), Advice("old", "Gone.", of="evaluation")]
    steps = [Step("Evaluate it", "aitraining evaluate p"), Step("Serve it", "serve p")]
    write_report(tmp_path, name="p", training=training(), advice=seen, next_steps=steps)
    paths = write_report(tmp_path / "out", name="p", evaluation=evaluation(), project=tmp_path)
    data = json.loads(paths["report"].read_text())
    assert data["training"]["history"] == [dict(entry) for entry in HISTORY]
    assert [entry["code"] for entry in data["advice"]] == ["divergence_not_falling"]
    assert [step["title"] for step in data["next_steps"]] == ["Serve it"]
    assert data["evaluation"]["gap_closed"]["estimate"] == 0.75
    page = paths["page"].read_text()
    assert "It works: three" in page
    assert "Divergence from the teacher" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_a_report_that_cannot_be_read_does_not_stop_an_evaluation(tmp_path):
    (tmp_path / "report.json").write_text('{"format": 1, "training": {}, "advice": []}')
    paths = write_report(tmp_path, name="p", evaluation=evaluation())
    assert json.loads(paths["report"].read_text())["training"] is None


def test_the_page_is_valid_html():
    html5lib = pytest.importorskip("html5lib")
    rows = (TrainedRow(1, HOSTILE, "a", "b", True, 1, ("a",), (0.1,), (0.2,)),)
    for parts in ({"evaluation": evaluation()}, {"training": training(rows=rows)}, {}):
        html5lib.HTMLParser(strict=True).parse(render(report(**parts)))
