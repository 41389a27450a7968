"""On a GPU the LM head gives the model's own logits, in any precision, and a loss computed so is taken."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from small_runs import losses, make
from transformers import AutoModelForCausalLM

from trl_distill.models.completion_forward import OWN_LOGITS
from trl_distill.models.generation import GenerationSettings
from trl_distill.teachers.loading import load_teacher


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_ordinary_model_fails_the_logits_check(dtype, tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, dtype))
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=model, teacher_dtype=dtype)
    losses(trainer)
    assert not hasattr(trainer.model, OWN_LOGITS)
    assert not hasattr(trainer.teacher.model, OWN_LOGITS)
    assert "LM head alone" not in capsys.readouterr().out


def test_a_head_trained_with_an_adapter_is_the_one_used(tiny_model_dir, tiny_teacher_dir, tmp_path):
    peft = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    fused, plain = (
        losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path, peft=copy.deepcopy(peft), distill_loss_impl=impl))
        for impl in ("fused", "plain")
    )
    assert fused == pytest.approx(plain, rel=1e-4)


def test_a_teacher_writes_where_it_is_what_it_writes_on_a_cpu(tiny_teacher_dir, gpu):
    teacher, on_cpu = (load_teacher(str(tiny_teacher_dir), device=device) for device in (gpu, "cpu"))
    settings = GenerationSettings(max_new_tokens=4, do_sample=False)
    prompts = [[70, 71, 72], [73]]
    here, there = ([c.ids for c in one.generate(prompts, settings)] for one in (teacher, on_cpu))
    assert here == there
    assert teacher.model.device == gpu
