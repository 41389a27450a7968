"""What a teacher's numbers are when they are none: nothing of it is stored, and the rows are named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_runs import PAIRS, TEMPLATES

from trl_distill import generate_with_teacher
from trl_distill.cli import main
from trl_distill.data.row_report import numbered
from trl_distill.errors import TeacherError
from trl_distill.losses.lm_head import LMHead
from trl_distill.losses.signals import DenseSignal
from trl_distill.teachers.completions.store import CompletionStore
from trl_distill.teachers.target_store.formats import Span, format_of

KINDS = ("topk", "sample", "hidden")


@pytest.fixture
def teach(tiny_model_dir, tmp_path):
    """Run the command on PAIRS with a teacher, and return what it printed on stderr and its exit code."""
    rows = [dict(zip(PAIRS, values, strict=True)) for values in zip(*PAIRS.values(), strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(teacher, *more):
        given = {
            "--model": tiny_model_dir, "--teacher-model": teacher, "--data-path": tmp_path / "rows.jsonl",
            "--output": tmp_path / "store", "--teacher-prompt-template": TEMPLATES["teacher_prompt_template"],
        }  # fmt: skip
        arguments = [str(part) for pair in given.items() for part in pair]
        result = CliRunner().invoke(main, ["teach", *arguments, *more])
        return result.stderr, result.exit_code

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_overflow_are_not_stored_and_their_rows_are_named(kind, teach, overflowing_teacher, tmp_path):
    folder, rows = overflowing_teacher
    said, code = teach(folder, "--kind", kind, "--teacher-dtype", "float16")
    assert code == 2
    assert f"its log-probabilities are NaN or infinite at {numbered(rows)} of the data, and are not stored; " in said
    assert "float16 holds no number above 65,504: load it with --teacher-dtype bfloat16 or float32" in said
    assert not list((tmp_path / "store").rglob("*.parquet"))


def test_what_the_message_proposes_works(teach, overflowing_teacher, tmp_path):
    said, code = teach(overflowing_teacher[0], "--teacher-dtype", "float32", "--output", str(tmp_path / "another"))
    assert code == 0, said


@pytest.mark.parametrize("sampled", [False, True])
def test_completions_that_overflow_are_not_kept(sampled, overflowing_teacher, tmp_path):
    """Greedy decoding would write the token at the NaN, and sampling would fail inside of torch."""
    store = CompletionStore(tmp_path / "completions.jsonl")
    how = {"max_new_tokens": 4, "do_sample": sampled, "store": store, "progress": False}
    folder = str(overflowing_teacher[0])
    with pytest.raises(TeacherError, match=r"^the logits of '.*' are NaN or infinite on \d of 8 prompts, such as 'g f"):
        generate_with_teacher(folder, TEMPLATES["teacher_prompt_template"], PAIRS["prompt"], dtype="float16", **how)
    assert not store.path.exists()
    whole = generate_with_teacher(folder, TEMPLATES["teacher_prompt_template"], PAIRS["prompt"], **how)
    assert all(row["completion"] for row in whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_probability_of_0_is_stored_and_a_number_that_is_none_is_not(kind, dtype):
    format_ = format_of(kind, k=6, temperatures=(1.0, 2.0), vocabulary=6)
    hidden = torch.eye(4, 3, dtype=dtype)
    hidden[2, 0], hidden[3, 1] = math.nan, math.inf
    bias = torch.zeros(6, dtype=dtype)
    bias[5] = -math.inf  # ruled out
    head = LMHead(torch.ones(6, 3, dtype=dtype), bias)
    with np.errstate(invalid="ignore"):
        arrays = format_.encode(DenseSignal(hidden, head, 6), [Span(b"key", 4)])
    assert format_.unusable(arrays).tolist() == [False, False, True, True]
