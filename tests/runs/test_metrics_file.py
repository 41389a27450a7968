"""`metrics.jsonl`: every log of a run is a line, each once, also if the run was killed and resumed."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from transformers import TrainerControl, TrainerState

from trl_distill import LLMTrainingParams, run
from trl_distill.runs.metrics_file import MetricsFile


@pytest.fixture(scope="module")
def finished(tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    """A run of four steps, a log and a checkpoint each, with two evaluations."""
    data = tmp_path_factory.mktemp("data")
    for name in ("train", "validation"):
        (data / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": w, "completion": "a b"}) for w in "abcdefgh"))
    settings = {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(data), "epochs": 2,
        "gradient_accumulation": 1, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": 9, "project_name": str(tmp_path_factory.mktemp("projects") / "run"),
    }  # fmt: skip
    return settings, run(LLMTrainingParams(**settings))


def lines(folder):
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_log_of_a_run_is_a_line(finished):
    _, result = finished
    written = lines(result.paths["project"])
    assert [{**line, "time": None} for line in written] == [
        {**entry, "time": None} for entry in result.trainer.state.log_history
    ]
    assert all(list(line)[:3] == ["step", "epoch", "time"] for line in written)
    assert [line["step"] for line in written if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in written if "eval_kl" in line] == [2, 4]
    times = [line["time"] for line in written]
    assert times == sorted(times)
    assert "metrics.jsonl" in json.loads((result.paths["project"] / "run.json").read_text())["files"]


def test_a_log_after_the_run_is_not_in_its_file(finished):
    _, result = finished
    before = lines(result.paths["project"])
    result.trainer.log({"mine": 1.0})
    assert lines(result.paths["project"]) == before


def test_a_resumed_run_neither_loses_nor_repeats_a_line(finished, tmp_path):
    settings, result = finished
    folder = tmp_path / "run"
    shutil.copytree(result.paths["project"], folder)
    before = lines(folder)
    (folder / "run.json").unlink()  # as a kill in the fourth step leaves it, whose last line is cut
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{step}")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    run(LLMTrainingParams(**{**settings, "project_name": str(folder)}, resume=True))
    after = lines(folder)
    compared = ("step", "epoch", "loss", "eval_loss", "kl", "eval_kl")
    assert [[line.get(name) for name in compared] for line in after] == [
        [line.get(name) for name in compared] for line in before
    ]
    kept = [line for line in after if line["step"] <= 2]
    assert kept == before[: len(kept)]
    assert min(line["time"] for line in after if line["step"] > 2) > max(line["time"] for line in before)


def test_a_file_that_is_gone_is_written_again_from_the_checkpoint(finished, tmp_path):
    _, result = finished
    file, state = MetricsFile(tmp_path / "metrics.jsonl"), TrainerState()
    state.log_history = list(result.trainer.state.log_history)
    file.on_train_begin(result.trainer.args, state, TrainerControl())
    assert [line["step"] for line in lines(tmp_path)] == [entry["step"] for entry in state.log_history]
    assert {line["time"] for line in lines(tmp_path)} == {None}


def test_a_figure_that_is_not_finite_is_null_and_another_process_writes_nothing(finished, tmp_path):
    _, result = finished
    file, state = MetricsFile(tmp_path / "metrics.jsonl"), TrainerState(is_world_process_zero=True)
    state.log_history = [{"loss": 1.0, "grad_norm": math.inf, "epoch": 1.0, "step": 1}]
    file.on_log(result.trainer.args, state, TrainerControl())
    state.is_world_process_zero = False
    file.on_log(result.trainer.args, state, TrainerControl())
    (line,) = lines(tmp_path)
    assert (line["grad_norm"], line["loss"]) == (None, 1.0)


def test_a_run_resumed_after_its_last_step_repeats_neither_its_evaluation_nor_its_summary(finished, tmp_path):
    settings, result = finished
    folder = tmp_path / "run"
    shutil.copytree(result.paths["project"], folder)
    before = lines(folder)
    (folder / "run.json").unlink()
    run(LLMTrainingParams(**{**settings, "project_name": str(folder)}, resume=True))
    after = lines(folder)
    for name in ("loss", "eval_loss", "train_runtime"):
        assert [line["step"] for line in after if name in line] == [line["step"] for line in before if name in line]
