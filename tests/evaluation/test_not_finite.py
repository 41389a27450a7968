"""An evaluation of a model whose numbers are none gives a sentence, and no verdict."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import PAIRS, TEMPLATES
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import evaluate_distillation
from trl_distill.errors import DistillError, ModelError

pytest.importorskip("sacrebleu", reason="every evaluation has chrF")

ROWS = [{"text": prompt} for prompt in PAIRS["prompt"]]


def verdict(student, teacher, folder, **more):
    return evaluate_distillation(
        str(student), str(teacher), ROWS, teacher_prompt=TEMPLATES["teacher_prompt_template"], before=str(student),
        timed_queries=0, max_new_tokens=4, output=str(folder), **more,
    )  # fmt: skip


def test_a_student_that_diverged_is_not_evaluated(tiny_model_dir, tiny_teacher_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = math.nan
    model.save_pretrained(tmp_path / "student")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "student")
    with pytest.raises(ModelError, match=r"has weights that are not finite numbers \(lm_head.weight\)"):
        verdict(tmp_path / "student", tiny_teacher_dir, tmp_path / "out")


def test_a_teacher_that_overflows_gets_no_verdict(tiny_model_dir, overflowing_teacher, tmp_path):
    teacher, _ = overflowing_teacher
    with pytest.raises(DistillError, match=r"are NaN or infinite at rows? .* of the evaluated data.*: load it with "):
        verdict(tiny_model_dir, teacher, tmp_path / "out", teacher_dtype="float16")
