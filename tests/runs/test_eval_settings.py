"""What a run looks at while it trains: samples, early stopping, the best weights, an evaluation at the start."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import DistillationSFTConfig, LLMTrainingParams, run
from trl_distill.config.sft_config import from_params
from trl_distill.errors import ParamsError

ROWS = [{"text": text} for text in ("a b", "c", "d e f", "g", "b a", "c d", "e", "f g", "a c", "b d", "e g", "f a")]


@pytest.fixture(scope="module")
def settings(tiny_model_dir, tiny_teacher_dir):
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "teacher_prompt_template": "e f {input}",
        "data_path": ROWS, "holdout": 0.25, "distill_max_teacher_length": 4, "lr": 3e-2, "gradient_accumulation": 1,
        "batch_size": 4, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "save_total_limit": 9, "logging_steps": 1, "warmup_ratio": 0.0, "max_steps": 4, "scheduler": "constant",
    }  # fmt: skip


@pytest.fixture(scope="module")
def result(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples") / "run"
    params = LLMTrainingParams(
        **settings, project_name=str(folder), eval_samples=2, eval_on_start=True, load_best_model_at_end=True,
        metric_for_best_model="kl",
    )  # fmt: skip
    return run(params)


def samples(folder):
    return [json.loads(line) for line in (folder / "eval_samples.jsonl").read_text().splitlines()]


def writes(folder, prompt):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")
    rows = len(tokenizer)  # the teacher has more, which it does not write
    suppressed = list(range(rows, model.config.vocab_size)) or None
    new = model.generate(**ids, max_new_tokens=4, do_sample=False, suppress_tokens=suppressed)
    return tokenizer.decode(new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_each_evaluation_shows_before_now_and_teacher(result, settings):
    lines = samples(result.paths["project"])
    assert [line["step"] for line in lines] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for line in lines:
        assert line["before"] == writes(settings["model"], line["prompt"])
        assert line["teacher"] == writes(settings["teacher_model"], f"e f {line['prompt']}")
    for step in range(1, 5):
        checkpoint = result.paths["project"] / "checkpoints" / f"checkpoint-{step}"
        for line in lines[2 * step : 2 * step + 2]:
            assert line["now"] == writes(checkpoint, line["prompt"])


def test_samples_are_printed_with_each_evaluation(settings, tmp_path, capsys):
    run(LLMTrainingParams(**{**settings, "max_steps": 1}, project_name=str(tmp_path / "run"), eval_samples=1))
    printed = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(printed) if line.endswith("samples 1/1"))
    (line,) = samples(tmp_path / "run")
    assert printed[start - 1].split()[1] == "eval"
    assert [text.split(maxsplit=1)[0] for text in printed[start + 2 : start + 5]] == ["before", "now", "teacher"]
    assert line["now"].strip() in printed[start + 3]


def test_a_resumed_run_keeps_what_was_written_before_it(result, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(result.paths["project"], folder)
    (folder / "run.json").unlink()  # as a kill after the second step leaves it
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{step}")
    run(LLMTrainingParams(**settings, project_name=str(folder), eval_samples=2, eval_on_start=True, resume=True))
    assert {line["before"] for line in samples(folder)} == {line["before"] for line in samples(result.paths["project"])}
    assert [line["step"] for line in samples(folder)][:6] == [0, 0, 1, 1, 2, 2]


def test_the_weights_of_the_best_evaluation_are_saved(result):
    history = [line for line in result.trainer.state.log_history if "eval_kl" in line]
    assert [line["step"] for line in history] == [0, 1, 2, 3, 4]
    best = min(history[1:], key=lambda line: line["eval_kl"])
    folder = result.paths["project"]
    saved = load_file(folder / "model.safetensors")
    kept = load_file(folder / "checkpoints" / f"checkpoint-{best['step']}" / "model.safetensors")
    assert all(torch.equal(saved[name], kept[name]) for name in kept)
    assert result.metrics["eval_kl"] == best["eval_kl"]


def test_a_run_stops_early(settings, tmp_path, capsys):
    more = {"early_stopping_patience": 2, "early_stopping_threshold": 100.0, "max_steps": 20}
    result = run(LLMTrainingParams(**{**settings, **more}, project_name=str(tmp_path / "run")))
    assert result.trainer.state.global_step == 3  # the first evaluation is the best, and two are no better
    assert result.paths["manifest"].is_file()


@pytest.mark.parametrize(
    ("metric", "higher"),
    [("loss", False), ("kl", False), ("eval_ce", False), ("top1_agreement", True), ("mean_token_accuracy", True)],
)
def test_a_lower_divergence_is_better_and_a_higher_agreement(metric, higher, settings, tmp_path):
    params = LLMTrainingParams(**settings, load_best_model_at_end=True, metric_for_best_model=metric)
    assert from_params(params).greater_is_better is higher
    script = DistillationSFTConfig(output_dir=str(tmp_path), metric_for_best_model=metric, use_cpu=True, bf16=False)
    assert script.greater_is_better is higher


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"metric_for_best_model": "bleu", "load_best_model_at_end": True},
            "metric_for_best_model is 'bleu'; expected one of",
        ),
        ({"metric_for_best_model": "kl"}, "metric_for_best_model has no use"),
        ({"early_stopping_threshold": 0.1}, "early_stopping_threshold has no use"),
        ({"early_stopping_patience": 1, "eval_strategy": "no"}, "early_stopping_patience needs evaluations"),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "eval_strategy is 'steps' and save_strategy 'ep"),
        ({"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 2}, "give save_steps=2"),
        (
            {"eval_samples": 1, "trainer": "sft", "teacher_model": None},
            "eval_samples shows what the teacher writes too",
        ),
        ({"eval_samples": 1, "holdout": 0.0}, "eval_samples needs rows to evaluate on.* add holdout"),
        ({"eval_on_start": True, "holdout": 0.0}, "eval_on_start needs rows to evaluate on"),
    ],
)
def test_settings_that_cannot_do_anything_are_refused_before_a_model_loads(
    more, words, settings, tmp_path, monkeypatch
):
    def load(self):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("trl_distill.models.loading.ModelSource.load_model", load)
    with pytest.raises(ParamsError, match=words):
        run(LLMTrainingParams(**{**settings, **more}, project_name=str(tmp_path / "run")))
