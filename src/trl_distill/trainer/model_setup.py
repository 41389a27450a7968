"""Prepare the models of student and teacher for training."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from ..data.streaming import completions_of
from ..errors import printable
from ..models.broken_weights import check_finite
from ..models.completion_forward import add_completion_forward
from ..models.generation import evaluating
from ..models.loading import ModelSource
from ..models.logits_check import check_logits
from ..models.own_chat_template import own_template
from ..models.quantization import keep_differentiable
from ..teachers.base import single_teachers
from ..teachers.local.ema import EmaCallback
from ..teachers.local.teacher import LocalTeacher
from ..teachers.multi.teacher import MultiTeacher, attach_student
from ..teachers.same_weights import Student
from ..teachers.stop_tokens import add_stop_tokens
from ..teachers.text.local_text import LocalTextTeacher
from .distributed import check_sharding, keep_loss_precise, loads_alike, wrap_teacher
from .packing_checks import check_keeps_rows_apart
from .plan import StudentModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from ..teachers.base import Teacher
    from .base import DistillingTrainer


def ready_student(trainer: DistillingTrainer) -> PreTrainedTokenizerBase:
    """Add the distillation forward to the student, and return a copy of its tokenizer for training.

    Raises:
        ModelError: Its weights hold NaN or an infinity.
    """
    if not is_sharded(trainer):
        check_finite(trainer.model, "model")
    saved = trainer.saved_tokenizer
    processing: Any = trainer.processing_class  # the tokenizer, or the processor of a multimodal model
    for holder in (saved, processing):
        holder.chat_template = own_template(holder.chat_template)
    if saved.pad_token_id is None:
        saved.pad_token = saved.eos_token
    keep_differentiable(trainer.model)
    keep_loss_precise(trainer.accelerator)
    trainer.model_accepts_loss_kwargs = True  # our loss divides by num_items_in_batch itself
    add_completion_forward(trainer.base_student)
    student = trainer.base_student
    for config in (student.config.get_text_config(), getattr(student, "generation_config", None)):
        if config is not None:  # a model that generates nothing is refused by its logits
            config.pad_token_id = saved.pad_token_id
    return copy(saved)


def is_sharded(trainer: Trainer) -> bool:
    """Whether each process holds a part of the student's weights only."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def check_student(trainer: DistillingTrainer, model: torch.nn.Module) -> None:
    """Check where the student's logits come from, and whether it keeps packed rows apart."""
    split = getattr(getattr(trainer.accelerator, "parallelism_config", None), "cp_enabled", False)
    with trainer.accelerator.autocast():
        with evaluating(model):
            line = check_logits(trainer.base_student, model)
        if line:
            trainer.accelerator.print(printable(f"Student: {line}"))
        check_keeps_rows_apart(trainer.args, trainer.base_student, model, context_parallel=bool(split))


def student_of(trainer: DistillingTrainer, loaded_from: str | None) -> StudentModel:
    """Return what a set-up needs of a trainer's student.

    Args:
        trainer: The student's.
        loaded_from: The folder or Hub name that it was loaded from; None for a model that was given.
    """
    model, device, source = trainer.base_student, trainer.accelerator.device, None
    if loaded_from is not None and getattr(model, "quantization_method", None) is None:
        options = trainer.args.model_init_kwargs or {}
        assert isinstance(options, dict)
        source = ModelSource(
            loaded_from,
            revision=options.get("revision"),
            dtype=str(model.dtype).removeprefix("torch."),
            device=device,
            trust_remote_code=trainer.args.trust_remote_code,
        )
    weights = Student(lambda: trainer.model, trainer=type(trainer))
    return StudentModel(model.config, trainer.tokenizer, model.generation_config, weights, device, source)


def connect_teacher(trainer: DistillingTrainer, teacher: Teacher, *, fresh_adapter: bool) -> None:
    """Attach the student to teachers that use its weights, and let a moving average follow it.

    Args:
        trainer: The student's.
        teacher: Who scores.
        fresh_adapter: Whether the student's adapter, if it has one, was made for this run.

    Raises:
        ParamsError: See `check_sharding`.
        TeacherError: See `check_sharding` and `attach_student`.
    """
    check_sharding(trainer.accelerator, teacher)
    copied = attach_student(teacher, trainer.model, fresh=fresh_adapter)
    if copied:
        trainer.accelerator.print(printable(copied))
    if teacher.capabilities.moves:
        trainer.add_callback(EmaCallback(teacher))


def ready_teacher(trainer: DistillingTrainer, *, all_ends: bool) -> None:
    """Prepare the teacher to score the prepared rows, and set the student's stop tokens."""
    teacher, rows = trainer.teacher, trainer.train_dataset
    assert rows is not None
    add_stop_tokens(
        trainer.base_student.generation_config,
        completions_of(rows),
        teacher=teacher,
        tokenizer=trainer.tokenizer,
        all_ends=all_ends,
    )
    for one in single_teachers(teacher):
        if isinstance(one, LocalTextTeacher):
            one.unload()  # all of its completions are written
        if not isinstance(one, LocalTeacher):
            continue
        with loads_alike(trainer.accelerator, trainer.args, one):
            one.prepare(lambda model: wrap_teacher(model, trainer.accelerator))
        with trainer.accelerator.autocast():
            line = one.check_logits()
        if line:
            trainer.accelerator.print(printable(line))
    if not isinstance(rows, Dataset):
        return
    if isinstance(teacher, LocalTeacher):
        teacher.expect_prompts(rows["teacher_prompt"])
    elif isinstance(teacher, MultiTeacher):
        teacher.expect_rows(rows)
