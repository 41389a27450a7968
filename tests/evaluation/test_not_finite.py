"""An evaluation of a model whose numbers are none gives a sentence, and no verdict."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import PAIRS, TEMPLATES, make
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_distill import evaluate_distillation, load_teacher
from trl_distill.data.aligned_row import AlignedRow
from trl_distill.data.collator import DistillationCollator
from trl_distill.data.preparation import COLUMNS
from trl_distill.data.row_report import numbered
from trl_distill.errors import DistillError, ModelError, TeacherError
from trl_distill.evaluation.fidelity import fidelity_of

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
    with pytest.raises(TeacherError, match=r"are NaN or infinite on .*: load it with teacher_dtype="):
        verdict(tiny_model_dir, teacher, tmp_path / "out", teacher_dtype="float16")


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_divergence_that_is_nan_is_no_figure(side, tiny_model_dir, overflowing_teacher, tmp_path):
    """As of completions that another engine wrote."""
    teacher, numbers = overflowing_teacher
    rows = make(tiny_model_dir, teacher, tmp_path).train_dataset
    aligned = [
        AlignedRow(row["row"], "data", *[list(row["teacher_prompt"])] * 2, list(row["completion"]), kept=1)
        for row in rows
    ]
    models = {"teacher": (tiny_model_dir, teacher), "student": (teacher, tiny_model_dir)}[side]
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    student, scorer = (load_teacher(str(m), tokenizer=tokenizer, dtype="float16") for m in models)
    message = rf"log-probabilities of '{teacher}' are NaN or infinite at {numbered(numbers)} of the evaluated data, .*"
    with pytest.raises(DistillError, match=message + "float16 holds no number"):
        fidelity_of(student, scorer, aligned, collator=DistillationCollator(0), columns=COLUMNS[1:])
