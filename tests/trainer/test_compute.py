"""The trained weights, precision, optimizer and attention of a run: the defaults, and that they are shown."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import LoraConfig
from small_runs import make
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from trl_distill import LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.config import sft_config as config
from trl_distill.config.devices import computes_in_bfloat16, has_fused_adamw
from trl_distill.config.sft_config import from_params
from trl_distill.errors import ParamsError


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text, "completion": f"{text} c"}) + "\n" for text in "abcdefgh"))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(data),
        "project_name": str(tmp_path / "run"), "max_steps": 2, "gradient_accumulation": 1,
    }  # fmt: skip


@pytest.mark.skipif(torch.accelerator.is_available(), reason="for a machine without an accelerator")
@pytest.mark.parametrize("trainer", ["distillation", "sft"])
def test_on_a_cpu_a_run_is_in_float32_with_the_fused_adamw_and_says_so(trainer, settings, capsys):
    if trainer == "sft":
        del settings["teacher_model"]
    result = run(LLMTrainingParams(**settings, trainer=trainer))
    trained = f"all {result.model.num_parameters() / 1000:.1f}K parameters"
    line = f"{trained}, on cpu in float32; 1 process; optimizer adamw_torch_fused; attention sdpa"
    assert f"  training      {line}\n" in capsys.readouterr().out
    assert result.trainer.accelerator.mixed_precision == "no"
    assert [group["fused"] for group in result.trainer.optimizer.param_groups] == [True, True]
    assert result.model.config._attn_implementation == "sdpa"
    assert "| mixed_precision | auto |\n" in result.paths["card"].read_text()
    assert f"| computed | {line} |\n" in result.paths["card"].read_text()
    assert yaml.safe_load(result.paths["config"].read_text())["mixed_precision"] == "auto"


SAID = {
    "bf16": (["--mixed-precision", "bf16"], "in bf16 mixed precision, weights in float32, the teacher in float16;"),
    "weights": (["--dtype", "bfloat16"], "in bfloat16, the teacher in float16;"),
    "int4": (["--peft", "--quantization", "int4", "--teacher-quantization", "int8"], "in int4, the teacher in int8;"),
    "optimizer": (["--optimizer", "adafactor"], "in float32, the teacher in float16; 1 process; optimizer adafactor;"),
    "eager": (["--attn-implementation", "eager"], "optimizer adamw_torch_fused; attention eager"),
    "no mixed precision": (["--mixed-precision", "no"], "in float32, the teacher in float16;"),
}


@pytest.mark.parametrize("flags", SAID)
def test_a_dry_run_prints_the_requested_precision_and_optimizer(flags, settings, tmp_path):
    given, said = SAID[flags]
    if "--teacher-quantization" not in given:
        given = [*given, "--teacher-dtype", "float16"]
    typed = [x for name, value in settings.items() for x in (f"--{name.replace('_', '-')}", str(value))]
    shown = CliRunner().invoke(main, ["llm", *typed, *given, "--dry-run"], catch_exceptions=False).output
    line = next(line for line in shown.splitlines() if line.startswith("  training "))
    assert said in line + "\n"


def test_fp16_on_a_cpu_is_reported_as_float32(settings, capsys):
    settings["dry_run"] = True
    run(LLMTrainingParams(**settings, mixed_precision="fp16"))
    assert "on cpu in float32 (fp16 needs an accelerator);" in capsys.readouterr().out


def test_the_trainer_prints_device_precision_optimizer_and_attention(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16, attn_implementation="eager")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, more={"optimizers": (sgd, None)})
    line = "on cpu in bfloat16, the teacher in float32; 1 process; optimizer SGD; attention eager\n"
    trained = f"all {model.num_parameters() / 1000:.1f}K parameters"
    assert f"training      {trained}, {line}" in capsys.readouterr().out


@pytest.mark.parametrize("modules", ["all-linear", "q_proj,v_proj"])
def test_the_preflight_says_how_many_parameters_an_adapter_has(modules, settings, capsys):
    result = run(LLMTrainingParams(**settings, peft=True, lora_r=16, target_modules=modules))
    trained, _ = result.trainer.model.get_nb_trainable_parameters()
    line = f"adapter of {trained / 1000:.1f}K parameters (LoRA r=16), on cpu"
    assert f"  training      {line}" in capsys.readouterr().out
    assert f"| computed | {line}" in result.paths["card"].read_text()


MIXTURE = {
    "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # PEFT's own, of experts
def test_an_adapter_of_experts_is_counted_and_refused_with_dropout(settings, tiny_model_dir, tmp_path, capsys):
    settings["model"] = str(tmp_path / "mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.save_pretrained(settings["model"])
    Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=len(tokenizer), **MIXTURE)).save_pretrained(settings["model"])
    with pytest.raises(ParamsError, match=r"lora_dropout is 0\.05, but PEFT adapts the experts of a qwen3_moe without"):
        run(LLMTrainingParams(**settings, peft=True))
    result = run(LLMTrainingParams(**settings, peft=True, lora_dropout=0.0))
    trained, _ = result.trainer.model.get_nb_trainable_parameters()
    assert f"  training      adapter of {trained / 1000:.1f}K parameters (LoRA r=16), on cpu" in capsys.readouterr().out


def test_the_trainer_says_what_of_a_model_is_trained(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    adapter = LoraConfig(r=16, task_type="CAUSAL_LM", target_modules="all-linear")
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path / "lora", peft=adapter)
    trained, _ = trainer.model.get_nb_trainable_parameters()
    assert f"training      adapter of {trained / 1000:.1f}K parameters (LoRA r=16), on cpu" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.get_input_embeddings().requires_grad_(False)
    make(tiny_model_dir, tiny_teacher_dir, tmp_path / "frozen", model=model)
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    said = f"{left / 1000:.1f}K of {model.num_parameters() / 1000:.1f}K parameters, on cpu"
    assert f"training      {said}" in capsys.readouterr().out


CARDS = {"T4": [(7, 5)], "A100": [(8, 0)], "H100": [(9, 0), (9, 0)], "A100 and T4": [(8, 0), (7, 5)]}


@pytest.mark.parametrize("card", CARDS)
def test_bfloat16_is_used_on_gpus_that_support_it(card, monkeypatch):
    found = CARDS[card]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[device])
    monkeypatch.setattr(torch.version, "hip", None)
    assert computes_in_bfloat16() == ("T4" not in card)


@pytest.mark.parametrize(
    ("asked", "card", "launched", "on_cpu", "expected"),
    [
        ("auto", True, None, False, "bf16"),
        ("auto", True, "no", False, "bf16"),
        ("auto", False, None, False, "no"),
        ("auto", True, None, True, "no"),
        ("auto", True, "fp16", False, "fp16"),
        ("bf16", True, "no", False, "bf16"),
        ("no", True, "no", False, "no"),
        (None, True, None, False, "no"),
        (None, True, "bf16", False, "bf16"),
    ],
)
def test_precision_comes_from_the_run_then_accelerate_then_the_device(
    asked, card, launched, on_cpu, expected, tmp_path, monkeypatch
):
    """The accelerator is played, since the choice is made before any is used."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(config, "computes_in_bfloat16", lambda: card)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    if on_cpu:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    args = from_params(LLMTrainingParams(model="m", project_name=str(tmp_path), mixed_precision=asked))
    assert args.mixed_precision == expected
    if asked is not None:  # DeepSpeed refuses a run whose own settings say another
        assert (args.bf16, args.fp16) == (expected == "bf16", expected == "fp16")
    assert args.use_cpu == on_cpu


@pytest.mark.parametrize("more", [{}, {"peft": True}, {"dtype": "float32"}, {"mixed_precision": "bf16"}], ids=str)
def test_fp16_is_refused_for_trained_float16_weights(more, settings, monkeypatch):
    """The accelerator is played; a CPU computes fp16 in float32."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    params = LLMTrainingParams(**settings | {"mixed_precision": "fp16", "dtype": "float16", **more})
    if more:
        assert from_params(params).mixed_precision == params.mixed_precision
        return
    with pytest.raises(ParamsError, match=r"^fp16 scales .* the student's are in float16; load it in float32\."):
        run(params)


def test_mixed_precision_no_and_accelerates_bf16_are_refused_together(settings, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ParamsError, match=r"mixed_precision is 'no', but accelerate was launched with bf16; drop"):
        run(LLMTrainingParams(**settings, mixed_precision="no"))


def test_a_device_without_fused_adamw_uses_the_unfused_one(tmp_path, monkeypatch):
    assert has_fused_adamw(torch.device("cpu"))
    assert not has_fused_adamw(torch.device("meta"))
    monkeypatch.setattr(config, "has_fused_adamw", lambda device: False)
    params = LLMTrainingParams(model="m", project_name=str(tmp_path))
    assert from_params(params).optim == "adamw_torch"
    params.optimizer = "adafactor"
    assert from_params(params).optim == "adafactor"


@pytest.mark.parametrize("name", ["flash_attn", "kernels-community/flash-attn2"])
@pytest.mark.skipif(find_spec("kernels") is not None, reason="it may be usable here")
def test_attention_that_cannot_be_used_is_refused_before_the_teacher_writes(name, settings, tmp_path):
    with pytest.raises(ParamsError, match=f"^attn_implementation is '{name}', which cannot be used here .*; give"):
        run(LLMTrainingParams(**settings, completions="teacher", attn_implementation=name))
    assert not (tmp_path / "run").exists()


def test_a_run_begun_with_the_earlier_defaults_is_resumed_with_them(settings, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "scheduler": "constant", "warmup_ratio": 0.0}
    earlier = {**saving, "optimizer": "adamw_torch", "mixed_precision": None}
    whole = run(LLMTrainingParams(**settings | {"project_name": str(tmp_path / "whole")}, **earlier))
    run(LLMTrainingParams(**settings | {"max_steps": 1}, **earlier))
    (tmp_path / "run" / "run.json").unlink()  # as if it had been killed
    resumed = run(LLMTrainingParams(**settings, **saving, resume=True))
    assert resumed.trainer.args.optim == "adamw_torch"
    assert not any(group["fused"] for group in resumed.trainer.optimizer.param_groups)
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    kept = yaml.safe_load(resumed.paths["config"].read_text())
    assert (kept["optimizer"], kept["mixed_precision"]) == ("adamw_torch", None)
