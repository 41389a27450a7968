"""`tune`: a grid and optuna's trials on tiny models, judged by held-out rows."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from holding import another_process
from safetensors.torch import load_file
from small_runs import no_model

from trl_distill import LLMTrainingParams, evaluate_distillation, train, tune
from trl_distill.cli import main
from trl_distill.config.search_space import Range, shown
from trl_distill.errors import DataError, ParamsError, ProjectError, RunInterrupted, UsageError
from trl_distill.evaluation.page.search import SearchOnPage, TrialOnPage, charts_of_search
from trl_distill.evaluation.result import AFTER, Interval
from trl_distill.models.loading import ModelSource
from trl_distill.runs import disk_estimate
from trl_distill.runs.tuning import search
from trl_distill.runs.tuning import trial as trials
from trl_distill.runs.tuning.difference import difference_of
from trl_distill.runs.tuning.output import TrialOutput
from trl_distill.runs.tuning.plan import plan_of, teacher_key
from trl_distill.runs.tuning.result import Rows, Trial, TuningResult, objective_among
from trl_distill.runs.tuning.summary import doubts
from trl_distill.teachers.local.teacher import LocalTeacher

pytest.importorskip("sacrebleu", reason="every evaluation has chrF")

ROWS = [" ".join(pair) for pair in zip("abcdefgabcdefgabcdef", "bdfaceggecafdbbdfac", strict=False)]
PROMPTS = ["e f {input}", "g a {input}"]
SPACE = {"teacher_prompt_template": PROMPTS, "distill_temperature": [1, 2]}


@pytest.fixture(scope="module")
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "queries.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "teacher_prompt_template": PROMPTS[0],
        "data_path": str(folder / "queries.jsonl"), "holdout": 0.3, "distill_max_teacher_length": 4,
        "gradient_accumulation": 1, "batch_size": 8, "eval_strategy": "steps", "eval_steps": 1,
        "save_strategy": "epoch", "logging_steps": 100, "warmup_ratio": 0.0, "max_steps": 2,
        "scheduler": "constant", "lr": 1e-2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def tuned(settings, tmp_path_factory):
    """A grid of four trials, how many prompts each model completed, and what was printed."""
    written: Counter[str] = Counter()
    generate = LocalTeacher.generate

    def counted(self, prompts, generation):
        written[self.name] += len(prompts)
        return generate(self, prompts, generation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalTeacher, "generate", counted)
        params = LLMTrainingParams(**settings, project_name=str(tmp_path_factory.mktemp("tuned") / "search"))
        with redirect_stdout(io.StringIO()) as printed:
            found = tune(params, SPACE)
        return found, written, printed.getvalue()


@pytest.fixture(scope="module")
def result(tuned):
    return tuned[0]


@pytest.fixture
def copied(result, settings, tmp_path):
    """The parameters of the search in a copy of its project."""
    shutil.copytree(result.paths["project"], tmp_path / "search")
    return LLMTrainingParams(**settings, project_name=str(tmp_path / "search"))


def test_every_combination_is_a_plain_run(result):
    tried = sorted(tuple(trial.settings.values()) for trial in result.trials)
    assert tried == [(prompt, temperature) for prompt in PROMPTS for temperature in (1.0, 2.0)]
    for trial in result.trials:
        config = yaml.safe_load((trial.folder / "config.yaml").read_text())
        assert {name: config[name] for name in trial.settings} == trial.settings
        assert config["seed"] == 42
        assert trial.state == "finished"


def test_all_trials_are_judged_on_the_same_rows(result):
    held_out = {(trial.folder / "held_out.jsonl").read_text() for trial in result.trials}
    assert len(held_out) == 1
    assert len(held_out.pop().splitlines()) == len(result.best.rows.scores) == 6


def test_the_best_is_what_an_evaluation_finds_best(result):
    assert result.trials == tuple(sorted(result.trials, key=lambda trial: -trial.value(result.objective)))
    found = evaluate_distillation(result.best.folder, timed_queries=0).evaluation
    side = found.side(AFTER)
    assert result.best.score == side.mean_score(found.metric)
    assert result.best.divergence == pytest.approx(side.fidelity.mean_divergence, rel=1e-6)
    assert result.best.gap_closed == found.gap_closed


def test_the_teacher_writes_once_for_all_trials(tuned, settings):
    assert tuned[1][settings["teacher_model"]] == len(set(ROWS)) * len(PROMPTS)
    stores = [json.loads(path.read_text()) for path in tuned[0].paths["project"].glob("teacher/*/manifest.json")]
    assert len({store["teacher_prompt_template"] for store in stores}) == len(PROMPTS)
    assert [store["kind"] for store in stores] == ["hidden", "hidden"]


def test_a_topk_store_has_the_listed_temperatures_and_is_another_search(settings, copied, tmp_path):
    copied.teacher_store_kind = "topk"
    with pytest.raises(ProjectError, match="holds a search with teacher_store_kind None, and this one has 'topk'"):
        tune(copied, {"distill_temperature": [1, 2]})
    copied.project_name, copied.max_steps = str(tmp_path / "topk"), 1
    tune(copied, {"distill_temperature": [1, 2]})
    (store,) = (json.loads(path.read_text()) for path in (tmp_path / "topk").glob("teacher/*/manifest.json"))
    assert (store["kind"], store["temperatures"]) == ("topk", [1.0, 2.0])


@pytest.mark.parametrize(("teacher", "stores"), [("embedded", 1), ("self", 2)])
def test_an_adapter_or_all_weights_have_the_same_teacher(teacher, stores):
    params = LLMTrainingParams(model="embedded", teacher_model=teacher)
    plans = [plan_of(params, {"peft": peft, "lr": lr}) for peft in (False, True) for lr in (1e-4, 1e-3)]
    assert len({teacher_key(plan.params, kind="hidden", temperatures=None) for plan in plans}) == stores


def test_students_with_different_gaps_are_ranked_by_their_score(settings, tmp_path, capsys):
    params = LLMTrainingParams(**{**settings, "max_steps": 1}, project_name=str(tmp_path / "prompts"))
    found = tune(params, {"student_prompt_template": ["{input}", "e f {input}"]})
    assert found.objective == "score"
    assert all(trial.gap_closed is not None for trial in found.trials)
    assert [trial.score for trial in found.trials] == sorted((trial.score for trial in found.trials), reverse=True)
    assert "Best by chrF" in capsys.readouterr().out
    table = found.paths["page"].read_text().partition("<th>trial</th>")[2].partition("</tr>")[0]
    assert table.count("chrF") == 1
    tuned = objective_among("gap closed", ["lr"], with_references=False)
    teachers = {has: objective_among("gap closed", ["teacher_system"], with_references=has) for has in (False, True)}
    assert (tuned, teachers) == ("gap closed", {False: "gap closed", True: "score"})


def test_it_is_said_that_different_teachers_are_not_compared(tuned):
    assert "each trial is compared with its own teacher" in tuned[2]


def test_a_server_is_asked_once_for_all_trials(settings, server, tmp_path):
    more = {"teacher_model": server.teacher, "distill_alpha": 0.0, "max_steps": 1, "project_name": str(tmp_path / "s")}
    result = tune(LLMTrainingParams(**{**settings, **more}), {"lr": [1e-2, 1e-3]})
    assert len(result.finished) == 2
    assert sorted(server.answered()) == sorted({f"e f {text}" for text in ROWS})


def test_only_the_best_trials_model_is_kept(result):
    models = {path.parent.name for path in (result.paths["project"] / "trials").glob("*/model.safetensors")}
    assert models == {result.best.folder.name}
    checkpoints = list((result.paths["project"] / "trials").glob("*/checkpoints"))
    assert [path.parent.name for path in checkpoints] == [result.best.folder.name]


def test_the_best_settings_train_the_same_student_again(result):
    done = CliRunner().invoke(main, ["llm", "--config", str(result.paths["settings"])])
    assert done.exit_code == 0, done.stderr
    again = load_file(result.paths["project"] / "final" / "model.safetensors")
    best = load_file(result.best.folder / "model.safetensors")
    assert all(again[name].equal(best[name]) for name in best)


def test_what_a_link_among_the_trials_leads_to_stays(result, copied, tmp_path):
    trials, elsewhere = tmp_path / "search" / "trials", tmp_path / "elsewhere"
    shutil.copytree(trials / result.best.folder.name, elsewhere)
    (trials / "009").symlink_to(elsewhere)
    files = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    assert elsewhere / "model.safetensors" in files
    found = tune(copied, {"teacher_prompt_template": PROMPTS[:1], "distill_temperature": [1, 2, 3]})
    assert {trial.folder.name for trial in found.trials} == {"001", "002", "003", "004", "010"}
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == files


def test_a_finished_search_is_not_run_again(result, copied, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    again = tune(copied, SPACE)
    assert [trial.number for trial in again.trials] == [trial.number for trial in result.trials]
    assert again.best.rows == result.best.rows


def test_more_values_extend_a_search(result, copied):
    before = {path.name: (path / "trial.json").read_text() for path in (result.paths["project"] / "trials").iterdir()}
    again = tune(copied, {"distill_temperature": [1, 3]})
    assert len(again.trials) == 5
    (new,) = (trial for trial in again.trials if trial.number == 5)
    assert new.settings == {"teacher_prompt_template": PROMPTS[0], "distill_temperature": 3.0}
    for trial in again.trials:
        if trial is not new:
            assert (trial.folder / "trial.json").read_text() == before[trial.folder.name]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 2.0}, r"holds a search with epochs=3.0, and this one has 2.0; give the same"),
        ({"holdout": 0.4}, r"with holdout=0.3, and this one has 0.4"),
        ({"data_path": "other"}, r"holds a search with data_path"),
    ],
)
def test_another_search_in_the_same_project_is_refused(copied, changed, message, monkeypatch):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    for name, value in changed.items():
        copied.set(name, value)
    with pytest.raises(ProjectError, match=message):
        tune(copied, SPACE)


def test_a_damaged_search_can_be_started_over(settings, tmp_path, monkeypatch):
    (tmp_path / "tuning.json").write_text("{")
    params = LLMTrainingParams(**settings, project_name=str(tmp_path))
    with pytest.raises(ProjectError, match=r"tuning\.json is damaged.*overwrite=True to start over"):
        tune(params, {"lr": [1e-3, 1e-4]})
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    params.overwrite = True
    with pytest.raises(AssertionError, match="a model was loaded"):  # the search has begun
        tune(params, {"lr": [1e-3, 1e-4]})
    assert json.loads((tmp_path / "tuning.json").read_text())["names"] == ["lr"]


def test_a_stopped_search_goes_on_where_it_was(copied, monkeypatch, capsys):
    begun: list[int] = []

    class Stops(trials.EvaluationWatch):
        """Interrupts the second trial in its first step."""

        def on_step_begin(self, args, state, control, **kwargs):
            begun.append(state.global_step)
            if begun == [0, 1, 0]:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trials, "EvaluationWatch", Stops)
    with pytest.raises(
        RunInterrupted, match=r"finished trials are kept in .*; run the same search again to go on"
    ) as stop:
        tune(copied, {"lr": [1e-3, 1e-4]})
    assert stop.value.exit_code == 130
    first = (Path(copied.project_name) / "trials" / "005" / "trial.json").read_text()
    result = tune(copied, {"lr": [1e-3, 1e-4]})
    assert begun == [0, 1, 0, 1]  # the second trial went on from its checkpoint
    assert (Path(copied.project_name) / "trials" / "005" / "trial.json").read_text() == first
    assert len(result.finished) == 6
    assert "5 trials were run earlier." in capsys.readouterr().out


def test_a_search_and_a_run_do_not_share_a_project(copied, settings, tmp_path):
    page = (Path(copied.project_name) / "report.html").read_bytes()
    for changed in ({}, {"overwrite": True}):
        params = LLMTrainingParams(**settings, **changed, project_name=copied.project_name)
        with pytest.raises(ProjectError, match="holds a search by aitraining tune; give another project_name"):
            train(params)
    assert (Path(copied.project_name) / "report.html").read_bytes() == page
    for begun in (".unfinished", "stages.json", "run.json"):
        (tmp_path / begun).mkdir()
        (tmp_path / begun / begun).write_text("{}")
        with pytest.raises(ProjectError, match=f"holds '{begun}', which is not from a search"):
            tune(LLMTrainingParams(**settings, project_name=str(tmp_path / begun)), {"lr": [1e-2, 1e-3]})


@pytest.mark.parametrize(("keep_all", "what"), [(False, "the best trial"), (True, "2 other trials")])
def test_the_space_that_finished_trials_keep_is_compared_before_the_first(
    keep_all, what, settings, tmp_path, monkeypatch
):
    size = (Path(settings["model"]) / "model.safetensors").stat().st_size
    monkeypatch.setattr(disk_estimate, "free_bytes", lambda _: (5 + 6 * keep_all) * size)  # a trial writes four
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    params = LLMTrainingParams(**settings, project_name=str(tmp_path / "search"))
    with pytest.raises(ProjectError, match=rf"one checkpoint .*, what is kept of {what}"):
        tune(params, {"lr": [1e-2, 1e-3, 1e-4]}, keep_all=keep_all)


def test_a_project_has_one_search_at_a_time(copied):
    with another_process(copied.project_name), pytest.raises(ProjectError, match="is in use by process"):
        tune(copied, SPACE)


@pytest.mark.parametrize(
    ("changed", "space", "error", "message"),
    [
        ({}, {"lr": [1e-3, 0]}, ParamsError, "lr is 0"),
        ({}, {"optimizer": ["sgd", "nosuch"]}, ParamsError, "optimizer is 'nosuch'"),
        ({}, {"merge_adapter": [False, True]}, ParamsError, r"no adapter to merge.*in the trial merge_adapter"),
        ({"peft": True}, {"target_modules": ["q_proj", "nosuch"]}, ParamsError, "not a module of the student"),
        ({}, {"teacher_model": ["./nowhere", "embedded"]}, UsageError, "'./nowhere'"),
        ({}, {"teacher_prompt_template": ["{input}", "{nosuch} {input}"]}, UsageError, "nosuch"),
        ({"holdout": 0.0}, {"lr": [1e-3, 1e-2]}, DataError, "no held-out rows to judge the trials by; set holdout|add"),
        ({"teacher_model": "ema"}, {"lr": [1e-3, 1e-2]}, ParamsError, "'ema'"),
        ({"queries_from_prompt": 9}, {"lr": [1e-3, 1e-2]}, ParamsError, "once by aitraining queries"),
        ({"push_to_hub": True}, {"lr": [1e-3, 1e-2]}, ParamsError, "push_to_hub has no use"),
        ({"teacher_store_kind": "topk"}, {"distill_divergence": ["jsd", "forward_kl"]}, ParamsError, "'topk'"),
    ],
)
def test_a_bad_value_anywhere_is_found_before_a_model_loads(
    settings, changed, space, error, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(ModelSource, "load_model", no_model)
    params = LLMTrainingParams(**{**settings, **changed}, project_name=str(tmp_path / "search"))
    with pytest.raises(error, match=message):
        tune(params, space)
    assert not (tmp_path / "search").exists()


def test_a_trial_that_diverges_is_not_the_end_of_the_search(result, copied):
    again = tune(copied, {"lr": [1e19, 1e-2]})
    assert again.best.rows == result.best.rows
    failed = again.trials[-1]
    assert (failed.settings["lr"], failed.state) == (1e19, "failed")
    assert "lower --lr (it is 1e+19)" in failed.reason


def test_the_page_shows_the_trials_and_the_best_one(result):
    report = json.loads(result.paths["report"].read_text())
    found = report["search"]
    assert [trial["number"] for trial in found["trials"]] == [trial.number for trial in result.trials]
    assert found["trials"][0]["settings"] == {name: shown(value) for name, value in result.best.settings.items()}
    assert found["sentences"][0].startswith(f"Best by the gap closed: trial {result.best.number} (")
    assert report["training"]["settings"]["project_name"] == str(result.best.folder)
    assert report["evaluation"] == json.loads((result.best.folder / "report.json").read_text())["evaluation"]
    page = result.paths["page"].read_text()
    assert "<h2>Trials</h2>" in page
    assert "Gap closed by distill_temperature" in page
    assert f"aitraining llm --config {result.paths['settings']}" in page


def test_the_values_under_a_plot_are_inside_it_and_do_not_touch():
    names = ["sequence-kd", "sdft", "gkd", "opcd", "prompt-baking"]
    for texts in (names, names[-2:]):
        trials = [TrialOnPage(n, {"recipe": text}, "finished", value=n / 10) for n, text in enumerate(texts, 1)]
        _, chart = charts_of_search(SearchOnPage("Gap closed", "chrF", tuple(trials)))[1]
        found = re.findall(r'<text x="([\d.]+)" y="207" text-anchor="middle">([^<]*)<', chart)
        assert [text[:3] for _, text in found] == [text[:3] for text in texts]
        ends = [(float(x) - 3.8 * len(text), float(x) + 3.8 * len(text)) for x, text in found]
        assert all(right <= left for (_, right), (left, _) in pairwise(ends))
        assert ends[0][0] >= 0
        assert ends[-1][1] <= 460


def test_optuna_searches_ranges_stops_trials_and_goes_on(copied, monkeypatch):
    pytest.importorskip("optuna")
    asked: list[float] = []

    def falls_behind(self, share, figure):
        asked.append(share)
        return len(asked) == 2

    monkeypatch.setattr(search.OptunaSearch, "falls_behind", falls_behind)
    space = {"lr": "1e-4..1e-3", "distill_temperature": [1, 2]}
    first = tune(copied, space, trials=1)
    more = tune(copied, space, trials=2)
    assert asked == [0.5, 0.5]
    assert set(map(repr, first.trials)) < set(map(repr, more.trials))
    new = {trial.number: trial for trial in more.trials if trial.number > 4}
    assert [(number, trial.state) for number, trial in sorted(new.items())] == [(5, "finished"), (6, "pruned")]
    assert all(1e-4 <= trial.settings["lr"] <= 1e-3 for trial in new.values())
    assert not (new[6].folder / "checkpoints").exists()
    assert list(map(repr, tune(copied, space, trials=2).trials)) == list(map(repr, more.trials))
    assert asked == [0.5, 0.5]


def test_a_trial_of_optuna_that_is_cut_short_comes_first_again(tmp_path):
    pytest.importorskip("optuna")

    def begun(earlier=()):
        space = {"lr": Range(1e-4, 1e-2), "epochs": (1, 2)}
        return search.OptunaSearch(space, tmp_path / "j", trials=3, earlier=earlier, objective="score", seed=0)

    cut = begun().next()
    for _ in range(2):  # killed twice
        again = begun()
        assert (again.next(), again.number) == (cut, 1)
    done = Trial(1, cut, None, "finished", score=50.0)
    resumed = begun([done])  # killed after its outcome was kept, and before optuna knew it
    other = resumed.next()
    assert (other != cut, resumed.number) == (True, 2)
    resumed.tell(Trial(2, other, None, "finished", score=40.0), "score")
    assert resumed.next() not in (cut, other)
    assert sorted(trial.value for trial in resumed.study.trials if trial.value is not None) == [40.0, 50.0]


def test_a_trial_below_the_median_falls_behind(tmp_path):
    pytest.importorskip("optuna")
    chosen = search.OptunaSearch(
        {"lr": Range(1e-5, 1e-2)}, tmp_path / "journal", trials=9, earlier=(), objective=None, seed=0
    )
    for number in range(1, search.STARTUP + 1):
        given = chosen.next()
        assert not chosen.falls_behind(0.5, number / 10)
        chosen.tell(Trial(number, given, None, "finished", score=10.0 * number), "score")
    chosen.next()
    assert not chosen.falls_behind(0.25, 0.0)  # no other trial was measured there
    assert not chosen.falls_behind(0.5, 0.3)
    chosen.next()
    assert chosen.falls_behind(0.5, 0.2)


def test_what_is_printed_after_a_failed_trial_reaches_the_terminal(tmp_path, capsys):
    output = TrialOutput(verbose=False)

    def fails():
        with output.written_to(tmp_path / "output.txt"):
            print("inside")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    print("after", file=output, flush=True)  # as a handler of logging does that was made inside
    assert capsys.readouterr().out == "after\n"
    assert (tmp_path / "output.txt").read_text() == "inside\n"


def test_a_small_space_is_not_searched_twice(tmp_path):
    pytest.importorskip("optuna")
    chosen = search.OptunaSearch({"lr": (1, 2, 3)}, tmp_path / "journal", trials=9, earlier=(), objective=None, seed=0)
    seen = {}
    while (given := chosen.next()) is not None:
        seen.setdefault(given["lr"], len(seen) + 1)
        chosen.tell(Trial(seen[given["lr"]], given, None, "finished", score=given["lr"]), "score")
    assert sorted(seen) == [1, 2, 3]
    assert chosen.total == 3


def of(scores, divergence=()):
    return Trial(1, {}, None, "finished", rows=Rows(tuple(scores), tuple(divergence), (3,) * len(divergence)))


@pytest.mark.parametrize(("low", "said"), [(-0.1, ["No trial is shown to close the gap"]), (0.1, [])])
def test_it_is_said_if_no_trial_is_shown_to_have_learned(low, said):
    best = replace(of([50.0]), score=50.0, gap_closed=Interval(0.2, low, 0.5, 0.95))
    for objective in ("gap closed", "score"):
        assert [line.partition(":")[0] for line in doubts(TuningResult(objective, (best,)))] == said
    other = replace(of([40.0]), score=40.0, gap_closed=Interval(0.3, 0.1, 0.5, 0.95))  # of another gap
    assert doubts(TuningResult("score", (best, other))) == []


def test_whether_the_best_differs_is_asked_of_paired_rows():
    noise = [0.0, 100.0] * 10
    ahead = difference_of(of([100.0] * 20), of([0.0] * 20), objective="score")
    assert ahead.is_beyond_noise
    assert ahead.rows_needed is None
    same = difference_of(of(noise), of(noise), objective="score")
    assert not same.is_beyond_noise
    slight = difference_of(of([100.0, *noise[1:]]), of(noise), objective="gap closed")
    assert not slight.is_beyond_noise
    assert slight.interval.estimate == 5.0
    assert slight.rows_needed > 20
    nearer = difference_of(of(noise, [0.1] * 20), of(noise, [0.2] * 20), objective="divergence")
    assert nearer.is_beyond_noise
    assert nearer.interval.estimate == pytest.approx(0.1)
    assert nearer.unit == "nats"
