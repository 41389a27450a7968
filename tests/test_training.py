"""`train` and `run`: from parameters to a project folder, through the public door."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import LLMTrainingParams, run, train
from trl_distill.errors import DataError, ModelError, ParamsError, ProjectError, TeacherError, TemplateError

QUERIES = ["a b", "c", "d e f", "g", "b a", "c d", "e", "f g"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "queries.json"
    path.write_text(json.dumps([{"text": q, "role": "g"} for q in QUERIES]))
    return path


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path, data):
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(data),
        "teacher_prompt_template": "e f {input}", "student_prompt_template": "{input}",
        "distill_max_teacher_length": 6, "project_name": str(tmp_path / "run_2.5-x"), "epochs": 2, "lr": 1e-3,
        "gradient_accumulation": 1,
    }  # fmt: skip


def test_train_returns_the_model_and_leaves_the_folder(settings, tmp_path):
    model = train(LLMTrainingParams(**settings))
    folder = tmp_path / "run_2.5-x"
    saved = AutoModelForCausalLM.from_pretrained(folder)
    for mine, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    AutoTokenizer.from_pretrained(folder)
    for name in ("model.safetensors", "README.md", "config.yaml", "metrics.json", "run.json", "training_args.bin"):
        assert (folder / name).is_file(), name
    assert not list(folder.glob("*.writing"))


def test_run_returns_the_whole_result(settings):
    result = run(LLMTrainingParams(**settings))
    assert result.metrics["train_loss"] > 0
    assert result.metrics["preflight_train"]["completions_from"] == {"teacher": 8}
    assert result.paths["card"].is_file()
    assert result.trainer.state.global_step == 4
    assert result.tokenizer.eos_token_id is not None


def test_sft_with_the_flag_reaches_the_same_trainer(settings):
    first = run(LLMTrainingParams(**settings))
    other = {**settings, "trainer": "sft", "use_distillation": True, "project_name": settings["project_name"] + "b"}
    second = run(LLMTrainingParams(**other))
    assert type(first.trainer) is type(second.trainer)
    assert second.metrics["train_loss"] == first.metrics["train_loss"]


def test_plain_sft_has_no_teacher(settings, data):
    plain = {k: v for k, v in settings.items() if "teacher" not in k and "student" not in k}
    result = run(LLMTrainingParams(**plain, trainer="sft"))
    assert type(result.trainer).__name__ == "SFTTrainer"
    assert result.metrics["train_loss"] > 0


def test_a_validation_split_is_evaluated(settings, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": q}) for q in QUERIES))
    result = run(LLMTrainingParams(**{**settings, "data_path": str(folder)}))
    assert {"eval_loss", "eval_kl", "eval_ce", "preflight_validation"} <= set(result.metrics)


def test_a_loaded_model_and_a_dataset_in_memory(settings):
    first = train(LLMTrainingParams(**settings))
    data = Dataset.from_dict({"text": QUERIES})
    stage = {**settings, "model": first, "data_path": data, "project_name": settings["project_name"] + "_2"}
    second = train(LLMTrainingParams(**stage))
    assert second is first


def test_settings_made_afterwards_are_honoured(settings):
    params = LLMTrainingParams(**settings)
    params.gradient_checkpointing = True
    params.batch_size = 1
    params.gradient_accumulation = 2
    params.distill_temperature = 2.5
    result = run(params)
    assert result.trainer.args.gradient_checkpointing
    assert result.trainer.args.per_device_train_batch_size == 1
    assert result.trainer.state.global_step == 8
    assert result.trainer.loss_settings.temperature == 2.5


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_an_adapter_is_saved_and_merged(quantization, settings):
    merged = quantization is None
    result = run(LLMTrainingParams(**settings, peft=True, merge_adapter=merged, quantization=quantization, lora_r=2))
    folder = result.paths["project"]
    assert (folder / "adapter_config.json").exists() != merged
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_a_finished_run_is_not_overwritten(settings):
    run(LLMTrainingParams(**settings))
    with pytest.raises(ProjectError, match="holds a finished run; give --overwrite"):
        run(LLMTrainingParams(**settings))
    run(LLMTrainingParams(**settings, overwrite=True))


def test_completions_are_paid_for_once(settings, tmp_path):
    run(LLMTrainingParams(**settings))
    store = tmp_path / "run_2.5-x" / "teacher_completions.jsonl"
    before = store.read_text()
    assert len(before.splitlines()) == len(QUERIES)
    run(LLMTrainingParams(**settings, overwrite=True))
    assert store.read_text() == before


def test_an_unfinished_run_is_resumed_and_ends_alike(settings, tmp_path):
    whole = run(LLMTrainingParams(**settings, save_strategy="steps", save_steps=1))
    parts = {**settings, "project_name": str(tmp_path / "parts"), "save_strategy": "steps", "save_steps": 1}
    from trl_distill.project import Project

    run(LLMTrainingParams(**parts))
    folder = Project(parts["project_name"]).folder
    (folder / "run.json").unlink()  # as a kill after the last checkpoint leaves it
    with pytest.raises(ProjectError, match=r"unfinished run .*--resume"):
        run(LLMTrainingParams(**parts))
    resumed = run(LLMTrainingParams(**parts, resume=True))
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_dry_run_trains_nothing(settings, tmp_path, capsys):
    result = run(LLMTrainingParams(**settings, dry_run=True))
    assert result.model is None
    assert not (tmp_path / "run_2.5-x" / "config.yaml").exists()
    shown = capsys.readouterr().out
    assert "Pre-flight (train)" in shown
    assert "| e f a b" in shown


def test_the_effective_configuration_is_written_without_secrets(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run(LLMTrainingParams(**settings))
    folder = tmp_path / "run_2.5-x"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["distill_temperature"] == 3.0
    assert written["model"] == settings["model"]
    for path in folder.iterdir():
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes(), path


def test_the_card_says_how_to_use_the_model(settings, tmp_path):
    run(LLMTrainingParams(**{**settings, "student_prompt_template": "c {input} d"}))
    card = (tmp_path / "run_2.5-x" / "README.md").read_text()
    for part in ("e f {input}", "c {input} d", settings["teacher_model"], "| distill_temperature | 3.0 |", "printed:"):
        assert part in card
    code = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    import os

    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        exec(code, names)
    finally:
        os.chdir(here)
    assert names["prompt"] == "c " + QUERIES[0] + " d"


WRONG = [
    ({"model": None}, ParamsError, "model is missing"),
    ({"teacher_model": None}, ParamsError, "teacher_model is missing"),
    ({"model": "./nowhere"}, ModelError, "model './nowhere' is no folder"),
    ({"teacher_model": "./nowhere"}, TeacherError, "teacher_model './nowhere' is no folder"),
    ({"data_path": "./nowhere.json"}, DataError, "nowhere.json"),
    ({"text_column": "txet"}, DataError, "'text'"),
    ({"teacher_prompt_template": "no field"}, TemplateError, "no {input}"),
    ({"teacher_prompt_template": "{rule} {input}"}, TemplateError, "{rule}"),
    ({"trainer": "distilation"}, ParamsError, "'distillation'"),
    ({"quantization": "int4"}, ParamsError, "--peft"),
    ({"optimizer": "adamm"}, ParamsError, "adamm"),
    ({"push_to_hub": True}, ParamsError, "HF_TOKEN"),
]


@pytest.mark.parametrize(
    ("change", "error", "said"), WRONG, ids=[next(iter(w[0])) + str(i) for i, w in enumerate(WRONG)]
)
def test_bad_input_is_one_sentence_before_a_model_loads(change, error, said, settings, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def no_model(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_model)
    with pytest.raises(error) as raised:
        run(LLMTrainingParams(**{**settings, **change}))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
