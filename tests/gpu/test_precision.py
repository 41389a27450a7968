"""Students in half precision on a GPU: the loss in one tile and in many, and whole runs, autocast's included."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from checks import relative_error
from click.testing import CliRunner
from losses.problems import STUDENT, make_case
from peft import LoraConfig
from small_runs import check_teacher_is_apart, losses, make
from transformers import AutoModelForCausalLM

from trl_distill.cli import main

HALF = [torch.bfloat16, torch.float16]


def on(gpu, case):
    """Return a problem's tensors on the GPU."""
    case.tensors = {name: None if t is None else t.to(gpu) for name, t in case.tensors.items()}
    case.targets = case.targets.to(gpu)
    return case


@pytest.mark.parametrize("tile_bytes", [None, 2**20], ids=["one tile", "many"])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
def test_a_half_precision_loss_is_at_most_twice_as_far_off_as_the_plain_one(dtype, kind, tile_bytes, gpu):
    case = make_case(tokens=300, student=(2000, 64), teacher=(2100, 96), bias=True, masked=0.2, divergence=kind)
    case = on(gpu, case).to(dtype)
    expected, right = case.to(torch.float64).run(impl="plain")
    _, plain = case.run(impl="plain")
    found, gradients = case.run(tile_bytes=tile_bytes)
    assert relative_error(found.loss, expected.loss) <= 1e-3
    for name in STUDENT:
        assert gradients[name].dtype == dtype
        assert relative_error(gradients[name], right[name]) <= 2 * relative_error(plain[name], right[name]), name


@pytest.mark.parametrize("tile_bytes", [None, 2**20], ids=["one tile", "many"])
def test_a_single_precision_loss_is_right(tile_bytes, gpu):
    case = on(gpu, make_case(tokens=300, student=(2000, 64), teacher=(2100, 96), bias=True, masked=0.2))
    expected, right = case.run(impl="plain")
    found, gradients = case.to(torch.float32).run(tile_bytes=tile_bytes)
    assert relative_error(found.loss, expected.loss) <= 1e-5
    for name in STUDENT:
        assert relative_error(gradients[name], right[name]) <= 1e-5, name


@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
def test_the_loss_under_autocast_is_that_of_half_precision_products(dtype, gpu):
    case = on(gpu, make_case(tokens=300, student=(2000, 64), teacher=(2100, 96))).to(torch.float32)
    expected, right = case.to(torch.float64).run(impl="plain")
    with torch.autocast(gpu.type, dtype=dtype):
        found, gradients = case.run()
    assert relative_error(found.loss, expected.loss) <= 1e-2
    for name in ("student_hidden", "student_weight"):
        assert gradients[name].dtype == torch.float32
        assert relative_error(gradients[name], right[name]) <= 2e-2, name


@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
@pytest.mark.parametrize("teacher", ["other", "self"])
def test_a_student_with_half_precision_weights_trains(teacher, dtype, tiny_model_dir, tiny_teacher_dir, tmp_path, gpu):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    name, peft = (tiny_teacher_dir, None) if teacher == "other" else ("self", lora)
    still = {"optim": "sgd", "learning_rate": 0.1}  # AdamW's epsilon is 0 in float16
    plain = losses(make(tiny_model_dir, name, tmp_path, peft=copy.deepcopy(peft), **still))
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=dtype)
    trainer = make(tiny_model_dir, name, tmp_path, model=model, peft=peft, **still)
    found = losses(trainer)
    assert next(trainer.model.parameters()).device == gpu
    assert found == pytest.approx(plain, rel=5e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(precision, tiny_model_dir, tiny_teacher_dir, tmp_path):
    plain = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path))
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **{precision: True})
    found = losses(trainer)
    same = 1 if precision == "fp16" else 3  # its gradients are scaled, and a step is left out where that is too much
    assert found[:same] == pytest.approx(plain[:same], rel=1e-2)
    assert all(math.isfinite(loss) for loss in found)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    check_teacher_is_apart(trainer)


@pytest.mark.parametrize(
    "flags", [["--mixed-precision", "bf16"], ["--dtype", "bfloat16", "--teacher-dtype", "bfloat16"]]
)
def test_the_command_trains_in_bf16(flags, tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"a b {w}", "completion": f" {w} c"}) + "\n" for w in "defg"))
    done = CliRunner().invoke(main, [
        "llm", "--model", str(tiny_model_dir), "--teacher-model", str(tiny_teacher_dir), "--data-path", str(data),
        "--teacher-prompt-template", "g f e d {input}", "--project-name", str(tmp_path / "run"), "--max-steps", "2",
        "--logging-steps", "1", *flags,
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert [line["loss"] > 0 for line in history if "loss" in line] == [True, True]
