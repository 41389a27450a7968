"""From a name to a model, with a sentence when there is none."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from trl_distill import LLMTrainingParams, run
from trl_distill.errors import ModelError, TeacherError, UsageError
from trl_distill.models import forked_trial
from trl_distill.models.loading import ModelSource, resolve
from trl_distill.teachers.loading import load_teacher


def test_embedded_is_a_folder_with_a_model():
    from pathlib import Path

    assert (Path(resolve("embedded", role="model")) / "config.json").is_file()


def test_a_folder_or_hub_name_is_resolved_to_itself(tiny_model_dir):
    assert resolve(str(tiny_model_dir), role="model") == str(tiny_model_dir)
    assert resolve("org/name", role="model") == "org/name"
    assert resolve("gpt2", role="model") == "gpt2"


def test_a_missing_folder_names_its_neighbour(tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelError, match="Did you mean 'student'"):
        resolve(str(tmp_path / "studnet"), role="model")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(TeacherError, match=r"teacher_model .* without config\.json"):
        resolve(str(tmp_path), role="teacher_model")


def test_a_folder_with_a_pipe_is_refused_at_once(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    os.mkfifo(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(TeacherError, match=r"'model-00001-of-00002\.safetensors' is a pipe, not a file"):
        resolve(str(folder), role="teacher_model")


def test_a_tokenizer_gets_a_padding_token_and_needs_an_end(tiny_model_dir, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    assert ModelSource(str(tiny_model_dir)).load_tokenizer().pad_token_id is not None
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        ModelSource(str(tmp_path)).load_tokenizer()


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_a_model_of_which_weights_are_missing_is_refused(role, tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = {name: value for name, value in load_file(folder / "model.safetensors").items() if ".1.mlp." not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    models = {"model": str(tiny_model_dir), "teacher_model": str(tiny_model_dir), role: str(folder)}
    settings = {"data_path": str(tmp_path / "rows.jsonl"), "project_name": str(tmp_path / "run"), **models}
    with pytest.raises(UsageError, match=rf"{role} .* has no model\.layers\.1\.mlp\..* in its files, which would be"):
        run(LLMTrainingParams(teacher_prompt_template="e {input}", **settings))
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("role", ["model", "teacher_model"])
def test_a_padding_token_that_the_model_has_not_is_refused_before_a_teacher_writes(role, tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<new>"})
    tokenizer.save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    models = {"model": str(tiny_model_dir), "teacher_model": str(tiny_model_dir), role: str(folder)}
    settings = {"data_path": str(tmp_path / "rows.jsonl"), "project_name": str(tmp_path / "run"), **models}
    with pytest.raises(UsageError, match=rf"{role} .* pads with '<new>', token \d+, and the model has the tokens 0 to"):
        run(LLMTrainingParams(teacher_prompt_template="e {input}", **settings))
    assert not (tmp_path / "run" / "teacher_completions.jsonl").exists()


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_quantized_model_is_quantized(kind, tiny_model_dir):
    model = ModelSource(str(tiny_model_dir), quantization=kind, dtype="auto").load_model()
    assert model.is_quantized


@pytest.fixture(scope="module")
def adapter_dir(tiny_model_dir, tmp_path_factory):
    """An adapter that changes the student, as a run with --peft leaves it: without config.json."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter") / "run"
    base = ModelSource(resolve(str(tiny_model_dir), role="model")).load_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(base, config).save_pretrained(folder)
    assert not (folder / "config.json").exists()
    return folder


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7]])).logits


def test_an_adapter_is_its_base_with_the_adapter_merged_into_it(adapter_dir, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    model = ModelSource(str(adapter_dir)).load_model()
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in model.named_modules())
    assert all(p.requires_grad for p in model.parameters())
    expected = logits(AutoModelForCausalLM.from_pretrained(adapter_dir))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert (logits(ModelSource(str(tiny_model_dir)).load_model()) - expected).abs().max() > 0.01
    assert ModelSource(str(adapter_dir)).config.model_type == "llama"


def test_an_adapters_tokenizer_is_its_own_where_there_is_one_else_its_bases(adapter_dir, tmp_path):
    assert ModelSource(str(adapter_dir)).load_tokenizer().chat_template is None
    folder = shutil.copytree(adapter_dir, tmp_path / "with")
    tokenizer = ModelSource(str(adapter_dir)).load_tokenizer()
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(folder)
    assert ModelSource(str(folder)).load_tokenizer().chat_template == "mine"


def test_a_source_reads_its_adapter_once(adapter_dir, tiny_model_dir, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "read")
    source = ModelSource(str(folder), quantization="int4")
    assert (source.base.path, source.base.quantization) == (str(tiny_model_dir), None)
    (folder / "adapter_config.json").unlink()
    assert source.adapter.base == str(tiny_model_dir)
    assert source.config is source.base.config


def test_a_project_of_an_adapter_teaches_and_learns(tiny_model_dir, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps([{"text": t} for t in ("a b", "c", "d e", "f")]))
    settings = {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_model_dir), "data_path": str(tmp_path / "data.json"),
        "teacher_prompt_template": "e {input}", "distill_max_teacher_length": 4, "max_steps": 1, "lr": 1e-2,
    }  # fmt: skip
    first = tmp_path / "first"
    run(LLMTrainingParams(**settings, project_name=str(first), peft=True, lora_r=2))
    assert (first / "adapter_config.json").is_file()
    assert not (first / "config.json").exists()
    second = {**settings, "model": str(first), "teacher_model": str(first)}
    run(LLMTrainingParams(**second, project_name=str(tmp_path / "full")))
    run(LLMTrainingParams(**second, project_name=str(tmp_path / "merged"), peft=True, merge_adapter=True, lora_r=2))
    for name in ("full", "merged"):
        assert (tmp_path / name / "config.json").is_file()
        assert not (tmp_path / name / "adapter_config.json").exists()
    with pytest.raises(
        ModelError, match=r"adapter with lora_r 2, which is trained further, but lora_r is 16; give lor"
    ):
        run(LLMTrainingParams(**second, project_name=str(tmp_path / "no"), peft=True))
    with pytest.raises(TeacherError, match=r"quantized base; drop --teacher-quantization, or merge"):
        load_teacher(str(first), quantization="int8")


def test_an_adapter_of_a_base_that_is_saved_quantized_is_refused(adapter_dir, tiny_model_dir, tmp_path):
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (base / "config.json").write_text(json.dumps(config))
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    edit(folder, base_model_name_or_path=str(base))
    with pytest.raises(ModelError, match="quantized base; set its base to the unquantized model"):
        ModelSource(str(folder)).check_can_merge()
    ModelSource(str(base), quantization="int4").check_can_merge()


def edit(folder, **values):
    """Change an adapter's configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("base", ["/nowhere/base", None, "itself"])
def test_an_adapter_without_its_base_says_where_to_name_it(base, adapter_dir, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "moved")
    edit(folder, base_model_name_or_path=str(folder) if base == "itself" else base)
    source = ModelSource(str(folder), role="teacher_model")
    for load in (lambda: source.config, source.load_tokenizer, source.load_model):
        with pytest.raises(TeacherError, match=r"is an adapter of .*set base_model_name_or_path in its adapter_config"):
            load()


def test_an_adapter_that_cannot_be_read_or_merged_is_one_sentence(adapter_dir, tiny_teacher_dir, tmp_path):
    folder = shutil.copytree(adapter_dir, tmp_path / "other")
    edit(folder, base_model_name_or_path=str(tiny_teacher_dir))  # of another width
    with pytest.raises(ModelError, match="no adapter could be loaded") as caught:
        ModelSource(str(folder)).load_model()
    assert "\n" not in str(caught.value)
    weights = load_file(adapter_dir / "adapter_model.safetensors")
    shutil.copy(adapter_dir / "adapter_config.json", folder)
    save_file(dict(list(weights.items())[2:]), folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no adapter could be loaded \(its files lack some of its weights\)"):
        ModelSource(str(folder)).load_model()
    for text in ("{", "[]"):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"no adapter_config\.json could be loaded"):
            ModelSource(str(folder)).load_model()


ENDLESS = r"(([a-z._0-9])*)*@"


@pytest.mark.parametrize(
    "patterns",
    [
        {"target_modules": ENDLESS},
        {"modules_to_save": [ENDLESS]},
        {"rank_pattern": {ENDLESS: 4}},
        {"layers_pattern": [ENDLESS], "layers_to_transform": [0]},
    ],
)
def test_a_pattern_of_an_adapter_that_matches_without_end_is_refused(patterns, adapter_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(forked_trial, "SECONDS", 1)
    folder = shutil.copytree(adapter_dir, tmp_path / "endless")
    edit(folder, **patterns)
    with pytest.raises(ModelError, match=r"no adapter could be loaded \(a pattern in it takes more than . seconds"):
        ModelSource(str(folder)).load_model()


def everything_of(source):
    return source.config, source.load_generation_config(), source.load_tokenizer(), source.load_model()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.json", "no configuration could be loaded (config.json is damaged)"),
        ("tokenizer.json", "no tokenizer could be loaded (tokenizer.json is damaged)"),
        ("model.safetensors", "no weights could be loaded (model.safetensors is damaged)"),
        ("pytorch_model.bin", "no weights could be loaded (pytorch_model.bin is damaged)"),
        ("generation_config.json", "no generation configuration could be loaded (generation_config.json is damaged)"),
    ],
)
def test_a_cut_file_of_a_model_is_named(name, said, tiny_model_dir, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    if name == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
        assert ModelSource(str(folder)).load_model() is not None
    (folder / name).write_bytes((folder / name).read_bytes()[:-50])
    with pytest.raises(ModelError) as refused:
        everything_of(ModelSource(str(folder)))
    assert said in str(refused.value)


class _Code:
    def __reduce__(self):
        return print, ("run",)


def test_no_message_says_how_to_load_a_pickle_with_code(tiny_model_dir, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"weight": _Code()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as refused:
        ModelSource(str(folder)).load_model()
    assert "a pickle with more than tensors, which is never loaded; save them as safetensors" in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert capsys.readouterr().out == ""
