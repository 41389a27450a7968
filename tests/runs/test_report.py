"""Each run leaves a page and its data: with the trainer's figures, a few rows, and what looks wrong."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from conftest import make_model_that_writes, make_tokenizer
from evaluation.pages import check_inert
from evaluation.test_page import HOSTILE

from trl_distill import LLMTrainingParams, evaluate_distillation, run
from trl_distill.cli import main

COMPLETIONS = ["a b", HOSTILE.replace("\ud800", "").replace("\x00", ""), "c d e", "f"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of data whose texts try to be more than text."""
    folder = tmp_path_factory.mktemp("rows")
    for name, count in (("train", 12), ("validation", 4)):
        rows = [{"text": f"{HOSTILE[:40]} {i}", "completion": COMPLETIONS[i % 4]} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def settings(folder, tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(folder),
        "teacher_prompt_template": "e f <b>{input}", "student_prompt_template": "{input}", "logging_steps": 1,
        "epochs": 3, "mixed_precision": "no", "project_name": str(tmp_path_factory.mktemp("runs") / "a <b> & c"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def result(settings):
    return run(LLMTrainingParams(**settings))


@pytest.fixture(scope="module")
def page(result):
    return result.paths["page"].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(result):
    return json.loads(result.paths["report"].read_text())


def test_a_run_leaves_a_page_and_its_data_in_its_folder(result):
    folder = result.paths["project"]
    assert result.paths["page"] == folder / "report.html"
    assert result.paths["report"] == folder / "report.json"


def test_the_page_loads_nothing_and_shows_hostile_text_as_text(page):
    parsed = check_inert(page)
    assert "<script>alert('x')</script>" in re.sub(r"\s+", " ", parsed.text)
    assert "a <b> & c" in parsed.text
    assert "\u202e" not in page


def test_the_figures_are_the_trainers(result, page, data):
    history = [line for line in result.trainer.state.log_history if "train_runtime" not in line]
    assert data["training"]["history"] == history
    titles = check_inert(page).titles
    for line in history:
        kind, prefix = ("evaluation", "eval_") if "eval_loss" in line else ("training", "")
        assert f"{kind}, step {line['step']}: {line[prefix + 'loss']:.4g}" in titles
        assert f"{kind}, step {line['step']}: {line[prefix + 'kl']:.4g} nats per token" in titles
    assert data["training"]["metrics"]["train_loss"] == result.metrics["train_loss"]


def test_the_divergence_of_the_tokens_is_that_of_the_last_evaluation(result, data):
    rows = data["training"]["rows"]
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    for name, key in (("kl", "divergence"), ("ce", "cross_entropy")):
        values = [value for row in rows for value in row[key]]
        assert sum(values) / len(values) == pytest.approx(result.metrics[f"eval_{name}"], rel=1e-4)
    for row, completion in zip(rows, COMPLETIONS, strict=True):
        assert "".join(row["pieces"]).removesuffix("<|end|>") == completion == row["learned"]
        assert len(row["pieces"]) == len(row["divergence"])


def test_the_page_shows_what_the_model_writes(result, data):
    row, tokenizer = data["training"]["rows"][0], result.tokenizer
    inputs = tokenizer(row["prompt"], return_tensors="pt").to(result.model.device)
    assert row["tokens"] > 0
    written = result.model.generate(**inputs, max_new_tokens=row["tokens"], do_sample=False)[0]
    written = written[inputs["input_ids"].shape[1] :]
    assert row["written"] == tokenizer.decode(written, skip_special_tokens=True)


def test_settings_versions_and_counts_are_shown(page, data):
    parsed = check_inert(page)
    training = data["training"]
    assert training["data"]["train"]["rows"] == 12
    assert training["seed"] == 42
    assert {"torch", "trl", "transformers", "Python"} <= set(training["versions"])
    assert {"model", "logging_steps"} <= set(training["changed"])
    for text in (f"torch {training['versions']['torch']}", "e f <b>{input}", "logging_steps", "All "):
        assert text in parsed.text


def test_the_page_names_the_evaluation_of_the_runs_own_validation_rows(result, page):
    assert f"aitraining evaluate {shlex.quote(str(result.paths['project']))}\n" in check_inert(page).text
    assert "heldout.jsonl" not in page


def test_too_few_steps_are_said_before_training_and_on_the_page(settings, tmp_path, capsys):
    said = "12 rows make 3 optimizer steps, the first at learning rate 0: too few to learn from; give "
    result = run(LLMTrainingParams(**{**settings, "project_name": str(tmp_path / "run")}))
    printed = capsys.readouterr().out
    assert f"{said}gradient_accumulation=1 and epochs=20" in printed
    assert printed.index(said) < printed.index("step ")
    assert f"{said}gradient_accumulation=1 and epochs=20" in check_inert(result.paths["page"].read_text()).text
    assert str(result.paths["page"]) in printed


def test_a_student_that_never_ends_is_said_at_the_end_and_on_the_page(settings, tmp_path, capsys):
    student = make_model_that_writes(tmp_path / "student", make_tokenizer()(" a")["input_ids"][0])
    given = {**settings, "model": str(student), "lr": 1e-9, "epochs": 1, "project_name": str(tmp_path / "run")}
    result = run(LLMTrainingParams(**given))
    printed, page = capsys.readouterr().out, check_inert(result.paths["page"].read_text()).text
    for said in ("The student does not end", "The student repeats itself in"):
        assert said in page
        assert said in printed
    assert "train longer (epochs) or with a higher lr" in printed
    assert "not ended after" in page


def test_the_command_names_flags(settings, tmp_path, capsys):
    names = ("model", "teacher_model", "data_path", "teacher_prompt_template")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", settings[name])]
    with pytest.raises(SystemExit):
        main(["llm", *flags, "--dry-run", "--project-name", str(tmp_path / "run")])
    assert "give --gradient-accumulation 1 and --epochs 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "shows"),
    [
        ({"peft": True, "merge_adapter": True, "teacher_model": "self"}, "divergence"),
        ({"packing": True}, "divergence"),
        ({"distill_alpha": 0.0}, "cross_entropy"),
        ({"distill_divergence": "reverse_kl", "padding_free": True}, "divergence"),
    ],
)
def test_every_kind_of_run_measures_its_rows(more, shows, settings, tmp_path):
    result = run(LLMTrainingParams(**{**settings, **more, "epochs": 1, "project_name": str(tmp_path / "run")}))
    rows = json.loads(result.paths["report"].read_text())["training"]["rows"]
    values = [value for row in rows for value in row[shows]]
    name = {"divergence": "kl", "cross_entropy": "ce"}[shows]
    assert sum(values) / len(values) == pytest.approx(result.metrics[f"eval_{name}"], rel=1e-3)
    assert (rows[0]["divergence"] == []) == (shows == "cross_entropy")
    assert all(row["written"] is not None for row in rows)


def test_all_prompts_of_the_teacher_are_shown(settings, tmp_path):
    given = {name: value for name, value in settings.items() if name != "teacher_prompt_template"}
    given |= {"teacher_prompt_mixture": ["Be brief. {input}", "Give reasons. {input}"], "epochs": 1}
    result = run(LLMTrainingParams(**{**given, "project_name": str(tmp_path / "run")}))
    training = json.loads(result.paths["report"].read_text())["training"]
    assert list(training["prompts"].values()) == ["{input}", "Be brief. {input}", "Give reasons. {input}"]
    assert training["rows"][0]["divergence"]


def test_an_evaluation_leaves_the_page_of_run_and_evaluation(result, folder, tmp_path):
    project = str(result.paths["project"])
    figures = evaluate_distillation(
        project, test_data=str(folder / "validation.jsonl"), timed_queries=0, output=tmp_path
    )
    found = figures.evaluation
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["evaluation"] == json.loads(json.dumps(found.to_dict()))
    assert data["training"]["steps"] == result.trainer.state.global_step
    page = check_inert((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert found.verdict.sentence in page.text
    for side in found.sides:
        assert side.label in page.text
    assert "<script>alert('x')</script>" in re.sub(r"\s+", " ", page.text)
    assert "before training" in page.text  # token by token


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of a file")
def test_a_disk_that_fills_leaves_page_and_data_of_one_evaluation(result, folder, tmp_path, capsys):
    import resource

    given = {"test_data": str(folder / "validation.jsonl"), "timed_queries": 0, "max_new_tokens": 2, "output": tmp_path}
    evaluate_distillation(str(result.paths["project"]), **given)
    names = ("report.json", "report.html")
    before = [(tmp_path / name).read_bytes() for name in names]
    sizes = sorted(map(len, before))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (sum(sizes) // 2, limits[1])
    )  # the smaller file fits, the larger does not
    try:
        evaluate_distillation(str(result.paths["project"]), **given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "The page could not be made" in capsys.readouterr().out
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert not list(tmp_path.glob(".report*"))


def test_plain_fine_tuning_has_a_page_of_its_curves(settings, tmp_path):
    plain = {name: value for name, value in settings.items() if "teacher" not in name and "student" not in name}
    plain |= {"trainer": "sft", "project_name": str(tmp_path / "run")}
    result = run(LLMTrainingParams(**plain))
    parsed = check_inert(result.paths["page"].read_text())
    assert "Fine-tuning report" in parsed.text
    assert "Divergence" not in parsed.text
    assert f"training, step 1: {result.trainer.state.log_history[0]['loss']:.4g}" in parsed.titles


def test_a_page_that_fails_does_not_fail_the_run(settings, tmp_path, monkeypatch, capsys):
    def failing(*_, **__):
        raise ValueError("no room")

    monkeypatch.setattr("trl_distill.runs.save.write_run_report", failing)
    monkeypatch.setattr("trl_distill.runs.save.trained_rows", failing)
    result = run(LLMTrainingParams(**{**settings, "epochs": 1, "project_name": str(tmp_path / "run")}))
    assert (tmp_path / "run" / "run.json").is_file()
    assert result.model is not None
    assert "The page could not be written: ValueError: no room" in capsys.readouterr().out
