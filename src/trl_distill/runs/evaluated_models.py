"""The models of an evaluation, resolved as a run resolves its student and teacher."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from ..config.sft_config import from_params
from ..config.training_params import LLMTrainingParams
from ..data.preparation import Recipe
from ..errors import ParamsError, printable
from ..evaluation.models import EvaluatedModels, student_named, students_in_folder, students_in_memory
from ..models.loading import ModelSource, resolve
from ..prompts.system_message import templates_of
from ..teachers.local.teacher import LocalTeacher
from ..teachers.local.weights import SELF
from ..trainer.plan import StudentModel, plan_setup
from ..trainer.settings import settings_of
from ..trainer.setup import build_setup
from .student import find_student

if TYPE_CHECKING:
    import torch

    from ..teachers.base import Teacher


def find_models(params: LLMTrainingParams, *, student: Any, before: Any = None) -> EvaluatedModels:
    """Return the students, the teacher and the recipe of an evaluation; weights are read when they are first needed.

    Args:
        params: What `evaluated_params` returned; `model` is the student before training, if its weights are in files.
        student: The trained student: a folder, a Hub name, or a loaded model.
        before: The student before training, if it was named; else an adapter's base, else the run's own.

    Raises:
        UsageError: Something that cannot be found or evaluated; raised before a model loads.
    """
    args = from_params(params)
    state = PartialState(cpu=args.use_cpu)
    own = copy.copy(params)
    own.model, own.quantization = student, None
    device: torch.device | str = "cpu" if args.use_cpu else state.device
    found = find_student(own, device=device, trainer_class=object, role="student")
    after, base = _students(found, student, params)
    if before is not None or base is None:
        given, role = (params.model, "model") if before is None else (before, "before")
        base = _before(given, found, params, role=role)
    plan = plan_setup(params, _given(params, base), student=student, data=None, templates=templates_of(params))
    setup = build_setup(settings_of(args), found, plan)
    if setup.note:
        state.print(printable(setup.note))
    assert isinstance(setup.recipe, Recipe)
    return EvaluatedModels(after, base, setup.teacher, setup.recipe)


def _students(found: StudentModel, student: Any, params: LLMTrainingParams) -> tuple[LocalTeacher, LocalTeacher | None]:
    if found.source is None:
        return students_in_memory(student, found.tokenizer, device=found.device)
    return students_in_folder(found.source, found.tokenizer, quantization=params.quantization)


def _before(given: Any, found: StudentModel, params: LLMTrainingParams, *, role: str) -> LocalTeacher | None:
    """Return the student before training; None if it was in memory alone."""
    if given is None:
        return None
    if not isinstance(given, str):
        return students_in_memory(given, found.tokenizer, device=found.device)[0]
    source = ModelSource(
        resolve(given, role=role),
        role,
        dtype=params.dtype,
        device=found.device,
        attn_implementation=params.attn_implementation,
        trust_remote_code=params.trust_remote_code,
    )
    return student_named(source, found.tokenizer)


def _given(params: LLMTrainingParams, before: LocalTeacher | None) -> str | Teacher | None:
    """Return the teacher; "self" is the student before training."""
    if params.teacher_model != SELF:
        return params.teacher_model
    if before is None:
        raise ParamsError(
            "teacher_model is 'self', the student before training, whose weights no longer exist; name it with "
            "--before, or give --teacher-model."
        )
    teacher = copy.copy(before)  # nothing of it is loaded yet
    teacher.name = SELF
    return teacher
