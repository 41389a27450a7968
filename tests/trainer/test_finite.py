"""Training ends at a loss that is not finite, says which rows and which side, and saves no broken weights."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from datasets import Dataset
from ranks import run_in
from small_runs import PAIRS, TEMPLATES, make
from step_kinds import trainer_of
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback

from trl_distill import (
    DistillationSFTConfig,
    DistillationSFTTrainer,
    LLMTrainingParams,
    PromptDistillationTrainer,
    run,
)
from trl_distill.data.row_report import numbered
from trl_distill.errors import DistillError, ModelError, TeacherError
from trl_distill.teachers.base import single_teachers
from trl_distill.trainer.finite import KEPT

TEACHERS = ("several teachers", "another tokenizer")
OF_STUDENT = ("self",)


def fails(trainer):
    with pytest.raises(DistillError) as raised:
        trainer.train()
    return str(raised.value)


@pytest.mark.parametrize("how", [{}, {"packing": True, "max_length": 64}], ids=["padded", "packed"])
def test_the_rows_on_which_a_teacher_overflows_are_named(how, overflowing_teacher, tiny_model_dir, tmp_path):
    folder, rows = overflowing_teacher
    trainer = make(
        tiny_model_dir, folder, tmp_path, per_device_train_batch_size=8, teacher_dtype="float16",
        logging_nan_inf_filter=True, **how,
    )  # fmt: skip
    message = fails(trainer)
    assert message.startswith("training stopped at step 1: the log-probabilities of the teacher, not of the student,")
    assert f"at {numbered(rows)} of the training data; float16 holds no number above 65,504: " in message
    assert "teacher_dtype='bfloat16' or float32; nothing was saved before." in message
    assert math.isnan(trainer.state.log_history[-1]["loss"])  # the line is written, with the figure as it is


def test_the_rows_on_which_a_student_overflows_are_named(overflowing_teacher, tiny_teacher_dir, tmp_path):
    folder, rows = overflowing_teacher
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    trainer = make(
        folder, tiny_teacher_dir, tmp_path, model=model, per_device_train_batch_size=8, learning_rate=1e-8,
        student_prompt_template="g f e d c b a g f e {input}",
    )  # fmt: skip
    message = fails(trainer)
    assert message.startswith("training stopped at step 1: the student's logits are NaN or infinite at ")
    assert f"at {numbered(rows)} of the training data; float16 holds no number above 65,504: load the " in message


def test_a_teacher_that_is_right_in_float32_trains(overflowing_teacher, tiny_model_dir, tmp_path):
    make(tiny_model_dir, overflowing_teacher[0], tmp_path, teacher_dtype="float32", max_steps=1).train()


class Breaks(TrainerCallback):
    """Makes weights of models NaN before a step, counted from 1."""

    def __init__(self, models, step):
        self.models, self.step = models, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            for model in self.models:
                next(model.parameters()).data.fill_(math.nan)


@pytest.mark.parametrize("kind", [*TEACHERS, *OF_STUDENT])
def test_the_side_at_fault_is_found_for_every_kind_of_teacher(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    """The teacher "self" has the student's own weights."""
    trainer = trainer_of(kind, tiny_model_dir, tiny_teacher_dir, tmp_path)
    teachers = [one.model for one in single_teachers(trainer.teacher)]
    trainer.add_callback(Breaks([trainer.base_student] if kind in OF_STUDENT else teachers, 1))
    message = fails(trainer)
    at_fault = "the student's logits are" if kind in OF_STUDENT else "the log-probabilities of the teacher, not of"
    assert message.startswith(f"training stopped at step 1: {at_fault}"), message
    assert re.search(r"rows? \d.* of the training data", message)


def test_the_first_bad_step_is_named_and_the_checkpoint_before_it_is_kept(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=6, logging_steps=6, save_strategy="steps", save_steps=2,
        per_device_train_batch_size=1, gradient_accumulation_steps=3,
    )  # fmt: skip
    trainer.add_callback(Breaks([trainer.teacher.model], 3))
    message = fails(trainer)  # at the checkpoint of step 4, long before the line
    assert message.startswith("training stopped at step 3: the log-probabilities of the teacher")
    assert message.endswith(f"the last checkpoint, {tmp_path / 'checkpoint-2'}, is kept.")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert all(parameter.isfinite().all() for parameter in saved.parameters())


def test_losses_are_read_at_times_even_if_nothing_is_logged(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=KEPT + 1, logging_strategy="no",
        per_device_train_batch_size=1,
    )  # fmt: skip
    trainer.add_callback(Breaks([trainer.teacher.model], 2))
    assert fails(trainer).startswith("training stopped at step 2: ")
    assert trainer.state.global_step == KEPT - 1


def test_a_checkpoint_of_weights_that_a_step_has_broken_is_not_written(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """That step's own loss is finite."""
    how = {"max_steps": 1, "learning_rate": 1e30, "lr_scheduler_type": "constant"}
    message = fails(make(tiny_model_dir, tiny_teacher_dir, tmp_path, save_strategy="steps", save_steps=1, **how))
    assert "the weights hold numbers that are not finite, or above 1.8e19" in message
    assert "lower learning_rate (it is 1e+30); nothing was saved before." in message
    assert not list(tmp_path.glob("checkpoint-*"))


def test_weights_with_which_the_student_has_no_logits_are_not_saved(tiny_model_dir, tiny_teacher_dir, tmp_path):
    """Each of them is finite."""
    how = {"max_steps": 1, "learning_rate": 1e10, "lr_scheduler_type": "constant"}
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, **how)
    trainer.train()
    with pytest.raises(DistillError, match=r"the student's logits are NaN, .* lower learning_rate \(it is 1e\+10\)"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_an_evaluation_on_which_a_teacher_overflows_is_no_fault_of_the_learning_rate(
    overflowing_teacher, tiny_model_dir, tmp_path
):
    folder, numbers = overflowing_teacher
    rows = [dict(zip(PAIRS, values, strict=True)) for values in zip(*PAIRS.values(), strict=True)]
    parts = {"validation": [rows[n - 1] for n in numbers]}
    parts["train"] = [row for row in rows if row not in parts["validation"]]
    for name, some in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(folder), teacher_dtype="float16", **TEMPLATES, lr=1e-3,
        data_path=str(tmp_path), project_name=str(tmp_path / "run"), max_steps=2, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    with pytest.raises(DistillError) as raised:
        run(params)
    message = str(raised.value)
    assert message.startswith("the evaluation has no figures at step 1: the log-probabilities of the teacher, not of")
    assert "of the validation data, all of its batch; float16 holds no number above" in message


def test_a_loss_of_a_subclass_is_watched_too(tiny_model_dir, tiny_teacher_dir, tmp_path):
    class Own(PromptDistillationTrainer):
        def compute_loss(self, model, inputs):
            return next(model.parameters()).sum() * math.nan

    message = fails(make(tiny_model_dir, tiny_teacher_dir, tmp_path, kind=Own))
    assert message.startswith("training stopped at step 1: the loss is NaN or infinite")


def broken_copy(folder, target, value=math.nan):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[5, 0] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_models_that_are_broken_from_the_beginning_are_refused(value, tiny_model_dir, tiny_teacher_dir, tmp_path):
    with pytest.raises(ModelError, match=r"^model has weights that are not finite numbers \(lm_head.weight\)"):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, model=broken_copy(tiny_model_dir, tmp_path, value))
    teacher = broken_copy(tiny_teacher_dir, tmp_path, value)
    with pytest.raises(
        TeacherError, match=r"^teacher_model has weights that are not finite numbers \(lm_head.weight\)"
    ):
        make(tiny_model_dir, tiny_teacher_dir, tmp_path, more={"teacher_model": teacher})
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(tiny_teacher_dir).save_pretrained(tmp_path / "teacher")
    with pytest.raises(TeacherError, match=r"^teacher_model '.*/teacher' has weights that are not finite numbers"):
        make(tiny_model_dir, tmp_path / "teacher", tmp_path)


def test_plain_sft_keeps_the_filter_of_transformers(tiny_model_dir, tmp_path):
    args = DistillationSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    DistillationSFTTrainer(str(tiny_model_dir), args, train_dataset=Dataset.from_dict({"text": ["a b"]}))
    assert args.logging_nan_inf_filter


RANKS = """
import math, torch
from accelerate import PartialState
from accelerate.utils import gather_object
from small_runs import make
from trainer.test_finite import Breaks, fails
trainer = make({student!r}, {teacher!r}, {folder!r}, per_device_train_batch_size=2)
if PartialState().process_index == 1:  # the teacher of one process alone
    trainer.add_callback(Breaks([trainer.teacher.model], 2))
result = gather_object([fails(trainer)])
"""


def test_processes_end_together_with_the_same_sentence(tiny_model_dir, tiny_teacher_dir, tmp_path):
    paths = {"student": str(tiny_model_dir), "teacher": str(tiny_teacher_dir), "folder": str(tmp_path)}
    mine, other = run_in(2, RANKS.format(**paths), tmp_path)
    assert mine == other
    assert mine.startswith("training stopped at step 2: the log-probabilities of the teacher, not of the student,")


def test_a_teacher_of_four_bits_in_bfloat16_storage_is_not_broken(wide_dir, tmp_path):
    """FSDP needs that storage, in which the packed bits look like any numbers."""
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16)
    teacher = AutoModelForCausalLM.from_pretrained(wide_dir, quantization_config=how)
    packed = next(p for p in teacher.parameters() if hasattr(p, "quant_state"))
    assert packed.dtype == torch.bfloat16
    assert not packed.abs().max() < 1e19
    trainer = make(wide_dir, wide_dir, tmp_path, max_steps=1, more={"teacher_model": teacher})
    assert math.isfinite(trainer.train().training_loss)


def test_broken_weights_are_not_uploaded(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=1)
    trainer.train()
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).view(-1)[0] = math.nan
    with pytest.raises(DistillError, match="the weights hold numbers that are not finite"):
        trainer.push_to_hub()


def test_a_model_that_was_moved_to_another_device_is_saved(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, max_steps=1)
    trainer.train()
    trainer.model.to("cpu")
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()
