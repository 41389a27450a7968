"""int4 and int8 students and teachers through bitsandbytes' CUDA kernels."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig
from small_runs import check_teacher_is_apart, losses, make

from trl_distill.cli import main
from trl_distill.models.loading import ModelSource

KINDS = ["int4", "int8"]


@pytest.fixture(autouse=True)
def cuda(gpu):
    """The kernels are of CUDA and ROCm."""
    if gpu.type != "cuda":
        pytest.skip(f"bitsandbytes' kernels here are CUDA's, and the GPU is {gpu.type}")


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("teacher", ["other", "self"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_student_learns(kind, teacher, wide_dir, wide_teacher_dir, tmp_path, gpu):
    name = wide_teacher_dir if teacher == "other" else "self"
    plain = losses(make(wide_dir, name, tmp_path, peft=lora()))
    model = ModelSource(str(wide_dir), quantization=kind, device=gpu).load_model()
    assert {p.device for p in model.parameters()} == {gpu}
    trainer = make(wide_dir, name, tmp_path, model=model, peft=lora(), max_steps=20)
    found = losses(trainer)
    assert found[0] == pytest.approx(plain[0], rel=0.2)
    assert sum(found[-3:]) < sum(found[:3])
    learning = [p for p in trainer.model.parameters() if p.requires_grad]
    assert learning
    assert all(bool(torch.isfinite(p).all()) for p in learning)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_teacher_teaches_nearly_what_it_did(kind, wide_dir, wide_teacher_dir, tmp_path, gpu):
    plain = make(wide_dir, wide_teacher_dir, tmp_path).evaluate()
    trainer = make(wide_dir, wide_teacher_dir, tmp_path, teacher_quantization=kind)
    found = trainer.evaluate()
    assert {p.device for p in trainer.teacher.model.parameters()} == {gpu}
    assert found["eval_kl"] == pytest.approx(plain["eval_kl"], rel=0.1)
    assert found["eval_ce"] == pytest.approx(plain["eval_ce"], rel=1e-5)
    trainer.train()
    check_teacher_is_apart(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_stays_on_the_cpu_if_it_is_to(kind, wide_dir):
    model = ModelSource(str(wide_dir), quantization=kind, device="cpu").load_model()
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_trains_a_quantized_student_that_is_its_own_teacher(kind, wide_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"a b {w}", "completion": f" {w} c"}) + "\n" for w in "defg"))
    done = CliRunner().invoke(main, [
        "llm", "--model", str(wide_dir), "--teacher-model", "self", "--data-path", str(data), "--peft",
        "--quantization", kind, "--teacher-prompt-template", "g f e d {input}", "--max-steps", "2",
        "--logging-steps", "1", "--project-name", str(tmp_path / "run"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
