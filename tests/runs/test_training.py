"""`train` and `run`: from parameters to a project folder, through the public door."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from forms import MARKED
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import LLMTrainingParams, run, train
from trl_distill.errors import (
    DataError,
    DistillError,
    ModelError,
    ParamsError,
    ProjectError,
    TeacherError,
    TemplateError,
    UsageError,
)
from trl_distill.runs.project_folder import Project
from trl_distill.runs.result_files import check_result

pytestmark = pytest.mark.usefixtures("device")

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


@pytest.mark.cpu
def test_train_returns_the_model_and_leaves_the_folder(settings, tmp_path):
    model = train(LLMTrainingParams(**settings))
    folder = tmp_path / "run_2.5-x"
    saved = AutoModelForCausalLM.from_pretrained(folder)
    for mine, theirs in zip(model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    AutoTokenizer.from_pretrained(folder)
    for name in ("model.safetensors", "README.md", "config.yaml", "metrics.json", "run.json"):
        assert (folder / name).is_file(), name
    assert not list(folder.glob("*.writing"))


def test_run_returns_the_whole_result(settings):
    result = run(LLMTrainingParams(**settings))
    assert result.metrics["train_loss"] > 0
    assert result.metrics["preflight_train"]["completions_from"] == {"teacher": 8}
    assert result.paths["card"].is_file()
    assert result.trainer.state.global_step == 4
    assert result.tokenizer.eos_token_id is not None


@pytest.mark.cpu
def test_sft_with_use_distillation_uses_the_distillation_trainer(settings):
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


def test_attributes_set_on_params_before_train_are_used(settings):
    params = LLMTrainingParams(**settings)
    params.gradient_checkpointing = True
    params.batch_size = 1
    params.gradient_accumulation = 2
    params.distill_temperature = 2.5
    result = run(params)
    assert result.trainer.args.gradient_checkpointing
    assert result.trainer.args.per_device_train_batch_size == 1
    assert result.trainer.state.global_step == 8
    assert result.trainer.setup.schedule.start.temperature == 2.5


@pytest.mark.parametrize("quantization", [None, "int4"])
def test_an_adapter_is_saved_and_merged(quantization, settings, wide_dir):
    merged = quantization is None
    own = {"model": str(wide_dir), "peft": True, "merge_adapter": merged, "quantization": quantization, "lora_r": 2}
    result = run(LLMTrainingParams(**{**settings, **own}))
    folder = result.paths["project"]
    assert (folder / "adapter_config.json").exists() != merged
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_a_finished_run_is_not_overwritten(settings):
    run(LLMTrainingParams(**settings))
    with pytest.raises(ProjectError, match="holds a finished run; give overwrite=True"):
        run(LLMTrainingParams(**settings))
    run(LLMTrainingParams(**settings, overwrite=True))


def test_a_finished_run_that_is_resumed_returns_what_it_has_written(settings, capsys):
    first = run(LLMTrainingParams(**settings))
    capsys.readouterr()
    again = run(LLMTrainingParams(**settings, resume=True))
    assert "has finished; there is nothing left to resume" in capsys.readouterr().out
    ids = torch.tensor([[5, 6, 7]])
    assert again.trainer is None
    logits = [one.model(ids.to(one.model.device)).logits.cpu() for one in (first, again)]
    assert torch.equal(*logits)
    assert again.metrics["train_loss"] == first.metrics["train_loss"]
    assert all(path.exists() for path in again.paths.values())
    for name, value in {"epochs": 7.0, "lr": 0.5}.items():
        with pytest.raises(ProjectError, match=f"holds a finished run with {name}"):
            run(LLMTrainingParams(**{**settings, name: value}, resume=True))
    weights = next(again.paths["project"].glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ProjectError, match=f"{weights.name} is damaged"):
        run(LLMTrainingParams(**settings, resume=True))


def test_resuming_without_a_project_starts_a_run(settings):
    assert run(LLMTrainingParams(**settings, resume=True)).trainer is not None


def test_a_run_that_is_refused_leaves_the_finished_one_as_it_was(settings, tmp_path):
    run(LLMTrainingParams(**settings))
    folder = tmp_path / "run_2.5-x"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for wrong in ({"text_column": "txet"}, {"block_size": 2}, {"model": "./nowhere"}):
        with pytest.raises(UsageError):
            run(LLMTrainingParams(**{**settings, **wrong, "overwrite": True}))
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_completions_are_generated_once(settings, tmp_path):
    run(LLMTrainingParams(**settings))
    store = tmp_path / "run_2.5-x" / "teacher_completions.jsonl"
    before = store.read_text()
    assert len(before.splitlines()) == len(QUERIES)
    run(LLMTrainingParams(**settings, overwrite=True))
    assert store.read_text() == before


@pytest.mark.cpu
def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path):
    whole = run(LLMTrainingParams(**settings, save_strategy="steps", save_steps=1))
    parts = {**settings, "project_name": str(tmp_path / "parts"), "save_strategy": "steps", "save_steps": 1}
    from trl_distill.runs.project_folder import Project

    run(LLMTrainingParams(**parts))
    folder = Project(parts["project_name"]).folder
    (folder / "run.json").unlink()  # as a kill after the last checkpoint leaves it
    with pytest.raises(
        ProjectError, match=r"unfinished run .*give resume=True to continue it, or add overwrite=True to start over"
    ):
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


def test_a_dry_run_without_a_teacher_shows_the_first_row_too(settings, tmp_path, capsys):
    rows = [{"messages": [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]}]
    plain = {"trainer": "sft", "model": settings["model"], "project_name": str(tmp_path / "run"), "dry_run": True}
    run(LLMTrainingParams(**plain, data_path=rows))
    run(LLMTrainingParams(**plain, data_path=[{"prompt": "a", "completion": " b"}]))
    shown = capsys.readouterr().out
    assert "  first row:\n    | user: a\n    | b\n    | assistant: c\n" in shown
    assert "  first row:\n    | prompt: a\n    | completion:  b\n" in shown
    assert shown.endswith("Dry run: nothing was trained.\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("input_", "column", "noted"), [("b", "say", True), ("", "say", False), ("b", "input", False)])
def test_a_column_named_input_that_is_not_read_is_noted(input_, column, noted, settings, capsys):
    rows = [{"say": "a", "input": input_, "output": "c"}]
    run(LLMTrainingParams(**settings | {"data_path": rows, "text_column": column}, dry_run=True))
    said = "{input} is the column 'say', and the column 'input' is not read; to use it in a template, rename it."
    assert (said in capsys.readouterr().out) == noted


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


def test_the_card_says_how_to_use_the_model(settings, tmp_path, monkeypatch):
    run(LLMTrainingParams(**{**settings, "student_prompt_template": "c {input} d"}))
    card = (tmp_path / "run_2.5-x" / "README.md").read_text()
    teacher = Path(settings["teacher_model"]).name
    for part in ("e f {input}", "c {input} d", f"`{teacher}`", "| distill_temperature | 3.0 |", "Your input"):
        assert part in card
    head = ModelCard.load(tmp_path / "run_2.5-x" / "README.md").data
    assert (head.library_name, head.pipeline_tag) == ("transformers", "text-generation")
    assert head.tags == ["trl", "trl-distill", "prompt-distillation"]
    code = card.split("```python\n")[1].split("```")[0]
    names: dict = {}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["tokenizer"].decode(names["inputs"]["input_ids"][0]) == "c Your input d"


def test_bad_validation_rows_are_found_before_the_teacher_writes(settings, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": q}) for q in QUERIES))
    (folder / "valid.jsonl").write_text('{"text": 5}\n')
    with pytest.raises(DataError, match=r"validation: 1 bad row, .*line 1"):
        run(LLMTrainingParams(**{**settings, "data_path": str(folder)}))
    assert not (tmp_path / "run_2.5-x" / "teacher_completions.jsonl").exists()


@pytest.mark.cpu
def test_the_returned_model_is_ready_to_answer_to_be_copied_and_pickled(settings):
    model = train(LLMTrainingParams(**settings, mixed_precision="bf16"))
    ids = torch.tensor([[5, 6, 7]])
    assert not model.training
    assert "forward" not in vars(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, model(ids).logits)
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    assert twin(ids).logits.abs().max() == 0
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, model(ids).logits)


STAGES = {
    "adapter to adapter": ({"peft": True}, {"peft": True}),
    "merged to whole": ({"peft": True, "merge_adapter": True}, {}),
    "whole to adapter": ({}, {"peft": True}),
    "chat template": ({"chat_template": "TEMPLATE", "student_prompt_template": "CHAT"},
                      {"student_prompt_template": "CHAT"}),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_a_run_continues_from_the_model_of_an_earlier_run(name, settings, tmp_path, chat_model_dir):
    (tmp_path / "chat.jinja").write_text(AutoTokenizer.from_pretrained(chat_model_dir).chat_template)
    stand_for = {"TEMPLATE": str(tmp_path / "chat.jinja"), "CHAT": [{"role": "user", "content": "{input}"}]}
    model, logits = settings["model"], []
    for number, own in enumerate(STAGES[name]):
        stage = {**settings, **{k: stand_for.get(v, v) if isinstance(v, str) else v for k, v in own.items()}}
        model = train(LLMTrainingParams(**{**stage, "model": model, "project_name": str(tmp_path / f"stage_{number}")}))
        logits.append(model(torch.tensor([[5, 6, 7]], device=model.device)).logits)
    assert not torch.equal(logits[0], logits[1])


def test_the_card_names_the_earlier_run(settings, tmp_path):
    first = train(LLMTrainingParams(**settings))
    run(LLMTrainingParams(**{**settings, "model": first, "project_name": str(tmp_path / "second")}))
    assert f"`{Path(settings['project_name']).name}`, trained to" in (tmp_path / "second" / "README.md").read_text()


def test_overwriting_an_adapter_by_a_whole_model_leaves_no_adapter(settings, tmp_path):
    run(LLMTrainingParams(**settings, peft=True))
    run(LLMTrainingParams(**settings, overwrite=True))
    folder = tmp_path / "run_2.5-x"
    assert not list(folder.glob("adapter*"))
    assert not any("lora" in name for name, _ in AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_every_step_is_in_the_figures(settings, tmp_path):
    """Of 12 steps with a line every 5, the last two are logged too, and means are over all."""
    result = run(LLMTrainingParams(**{**settings, "epochs": 6, "logging_steps": 5, "save_strategy": "no"}))
    written = json.loads((tmp_path / "run_2.5-x" / "metrics.json").read_text())
    assert [line["step"] for line in written["history"]] == [5, 10, 12]
    for name in ("loss", "kl", "ce"):
        values = [line[name] for line in written["history"]]
        expected = (5 * values[0] + 5 * values[1] + 2 * values[2]) / 12
        assert result.metrics[f"train_{name}"] == pytest.approx(expected)


def test_a_run_resumed_after_its_last_step_has_the_same_metrics(settings, tmp_path):
    whole = run(LLMTrainingParams(**settings))
    (tmp_path / "run_2.5-x" / "run.json").unlink()  # as a kill before the end leaves it
    resumed = run(LLMTrainingParams(**settings, resume=True))
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"])
    assert resumed.metrics["train_kl"] == pytest.approx(whole.metrics["train_kl"])


def test_the_last_evaluation_is_not_repeated(settings, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": q}) for q in QUERIES))
    result = run(LLMTrainingParams(**{**settings, "data_path": str(folder)}))
    evaluations = [line["step"] for line in result.trainer.state.log_history if "eval_loss" in line]
    assert evaluations == [2, 4]
    none = {**settings, "data_path": str(folder), "eval_strategy": "no", "project_name": str(tmp_path / "none")}
    assert "eval_loss" not in run(LLMTrainingParams(**none)).metrics


def test_a_run_that_diverges_fails_and_saves_no_broken_weights(settings, tmp_path):
    with pytest.raises(
        DistillError, match=r"training (stopped|diverged): .* step \d .*; lower lr .*; nothing was saved before."
    ) as raised:
        run(LLMTrainingParams(**{**settings, "lr": 1e20, "epochs": 4, "logging_steps": 1, "max_grad_norm": 0}))
    assert raised.value.exit_code == 1
    assert not (tmp_path / "run_2.5-x" / "model.safetensors").exists()
    for checkpoint in (tmp_path / "run_2.5-x").rglob("model.safetensors"):
        weights = AutoModelForCausalLM.from_pretrained(checkpoint.parent)
        assert all(torch.isfinite(p).all() for p in weights.parameters())


@pytest.mark.parametrize("merged", [False, True])
def test_neither_result_nor_checkpoint_has_the_arguments_as_a_pickle(merged, settings, tmp_path):
    base = {**settings, "save_strategy": "steps", "save_steps": 1, "peft": True, "merge_adapter": merged}
    run(LLMTrainingParams(**{**base, "max_steps": 2}))
    folder = tmp_path / "run_2.5-x"
    assert list(folder.rglob("trainer_state.json"))
    assert list(folder.rglob("training_args.bin")) == []
    (folder / "run.json").unlink()
    again = run(LLMTrainingParams(**{**base, "max_steps": 3, "resume": True}))
    assert again.trainer.state.global_step == 3


def test_weights_that_change_under_an_adapter_are_noticed(settings, tiny_model_dir, tmp_path, monkeypatch, capsys):
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    whole = (base / "model.safetensors").read_bytes()
    tensors = load_file(base / "model.safetensors")
    changed = {name: tensor * 1.5 for name, tensor in tensors.items()}
    how = {"model": str(base), "peft": True, "lora_r": 2, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    params = {**settings, **how}
    with monkeypatch.context() as stopped:
        stopped.setattr(Project, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(LLMTrainingParams(**params))
    save_file(changed, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ProjectError, match=r"the weights in model '.*base', which it trains an adapter on, have changed"
    ):
        run(LLMTrainingParams(**params, resume=True))
    (base / "model.safetensors").write_bytes(whole)
    run(LLMTrainingParams(**params, resume=True))
    folder = tmp_path / "run_2.5-x"
    capsys.readouterr()
    check_result(folder)
    assert capsys.readouterr().out == ""
    save_file(changed, base / "model.safetensors", {"format": "pt"})
    check_result(folder)
    assert "base', the base of the adapter in" in capsys.readouterr().out
    (base / "adapter_config.json").write_text("[")
    check_result(folder)
    adapter = folder / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace(str(base), str(folder)))  # of itself
    check_result(folder)
    assert capsys.readouterr().out.count("have changed since the run") == 2


BREAKING = {"lr": 1e20, "warmup_ratio": 0, "max_steps": 1}


def without_teacher(settings):
    return {name: value for name, value in settings.items() if not name.startswith(("teacher", "student", "distill"))}


@pytest.mark.parametrize("how", [{"lr": 1e10}, {"peft": True, "merge_adapter": True}], ids=["whole", "adapter"])
def test_a_run_whose_last_step_breaks_the_weights_saves_nothing(how, settings, tmp_path):
    with pytest.raises(DistillError, match=r"^training diverged: .* not saved; lower lr .*; nothing was saved before"):
        run(LLMTrainingParams(**{**settings, **BREAKING, "save_strategy": "no", **how}))
    assert not list((tmp_path / "run_2.5-x").rglob("*.safetensors"))


@pytest.mark.parametrize("saves", ["no", "steps"])
def test_plain_sft_saves_no_broken_weights_either(saves, settings, tmp_path):
    how = {**without_teacher(settings), **BREAKING, "trainer": "sft", "save_strategy": saves}
    with pytest.raises(DistillError, match=r"^training diverged: at step 1 the weights hold numbers that are not"):
        run(LLMTrainingParams(**how))
    assert not list((tmp_path / "run_2.5-x").rglob("*.safetensors"))


PLAIN = [
    (
        [{"question": "a b", "answer": "c d"}],
        {"prompt_text_column": "question", "completion_column": "answer"},
        "pairs",
    ),
    ([{"question": "a b c"}], {"text_column": "question"}, "text"),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]}], {}, "chat"),
]


@pytest.mark.parametrize(("rows", "columns", "kind"), PLAIN, ids=[p[2] for p in PLAIN])
def test_plain_sft_learns_the_columns_that_were_named(rows, columns, kind, settings, tmp_path, chat_model_dir):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows * 4)))
    plain = {"trainer": "sft", "model": str(chat_model_dir), "data_path": str(path), "epochs": 1,
             "project_name": str(tmp_path / "sft")}  # fmt: skip
    result = run(LLMTrainingParams(**plain, **columns))
    batch = next(iter(result.trainer.get_train_dataloader()))
    learned = result.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100])
    read = result.tokenizer.decode(batch["input_ids"][0])
    if kind == "pairs":
        assert learned.startswith("c d")
        assert read.startswith("a bc d")
    else:
        assert ("a b c" if kind == "text" else "b c") in learned


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"text": "a"}, {"text": None}], {}, "1 bad row, more than"),
        ([{"txet": "a"}], {}, "has no column 'text'"),
        ([{"text": "a", "completion": "b"}, {"text": "a", "completion": None}], {}, "1 row without a completion"),
        ([{"text": "a"}], {"distill_alpha": 0.5}, "add use_distillation=True, or drop distill_alpha"),
        ([{"text": "a"}], {"teacher_prompt_template": "b {input}"}, "drop teacher_prompt_template"),
    ],
)
def test_plain_sft_reports_what_it_cannot_use(rows, more, said, settings, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    plain = {"trainer": "sft", "model": settings["model"], "data_path": str(path), "project_name": str(tmp_path / "s")}
    with pytest.raises(UsageError, match=said):
        run(LLMTrainingParams(**plain, **more))


WRONG = [
    ({"model": None}, ParamsError, "model is missing"),
    ({"teacher_model": None}, ParamsError, "teacher_model is missing"),
    ({"model": "./nowhere"}, ModelError, "model './nowhere' is not a folder"),
    ({"teacher_model": "./nowhere"}, TeacherError, "teacher_model './nowhere' is not a folder"),
    ({"data_path": "./nowhere.json"}, DataError, "nowhere.json"),
    ({"text_column": "txet"}, DataError, "'text'"),
    ({"teacher_prompt_template": "{role}"}, TemplateError, "no {input}"),
    ({"student_prompt_template": "no field"}, TemplateError, "no {input}"),
    ({"teacher_prompt_template": "{rule} {input}"}, TemplateError, "{rule}"),
    ({"trainer": "distilation"}, ParamsError, "'distillation'"),
    ({"quantization": "int4"}, ParamsError, "add peft=True"),
    ({"optimizer": "adamm"}, ParamsError, "adamm"),
    ({"push_to_hub": True}, ParamsError, "HF_TOKEN"),
    ({"project_name": " "}, ParamsError, "project_name is empty"),
    ({"log": "tensorbord"}, ParamsError, "Did you mean 'tensorboard'"),
    ({"log": "wandb"}, ParamsError, "not installed"),
    ({"peft": True, "target_modules": "q_prog"}, ParamsError, "Did you mean 'q_proj'"),
]


def test_a_student_without_a_next_token_distribution_is_refused(settings, tmp_path, tiny_model_dir):
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    for name, said in (("bert", "is not a causal language model"), ("t5", "is an encoder-decoder")):
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=rf"model .*{name}.* {said}|{said}"):
            run(LLMTrainingParams(**{**settings, "model": str(tmp_path / name)}))
    assert not (tmp_path / "run_2.5-x").exists()


def test_a_teacher_without_a_chat_template_reads_chats_as_its_student(settings, tmp_path, chat_model_dir):
    path = tmp_path / "chat.jsonl"
    chat = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    path.write_text(json.dumps({"messages": chat}))
    given = {**settings, "model": str(chat_model_dir), "data_path": str(path), "teacher_prompt_template": "e {input}"}
    result = run(LLMTrainingParams(**given))
    teacher_prompt = result.trainer.train_dataset[0]["teacher_prompt"]
    assert result.tokenizer.decode(teacher_prompt).startswith("<|im_start|>user")


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


def test_a_loaded_model_is_refused_as_its_own_teacher(settings, tiny_model_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with pytest.raises(TeacherError, match="teacher_model is the model that is trained"):
        run(LLMTrainingParams(**{**settings, "model": model, "teacher_model": model}))
    assert not list(tmp_path.rglob("teacher_completions.jsonl"))


def test_plain_sft_on_the_assistants_turns_alone_needs_a_template_with_marks(settings, tmp_path, chat_model_dir):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat = {
        "model": str(chat_model_dir), "data_path": Dataset.from_dict({"messages": [talk, talk]}), "trainer": "sft",
        "assistant_only_loss": True, "project_name": str(tmp_path / "chat"), "max_steps": 1,
    }  # fmt: skip
    with pytest.raises(ParamsError, match=r"the student's has no {% generation %}; give one by chat_template"):
        train(LLMTrainingParams(**chat))
    assert not (tmp_path / "chat").exists()
    marked = tmp_path / "marked.jinja"
    marked.write_text(MARKED)
    assert run(LLMTrainingParams(**chat, chat_template=f"@{marked}")).metrics["train_loss"] > 0
