"""A run's teachers and prompts, read from its settings and checked before any model loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.validation import EMA, NO_TEACHER, check_average
from ..data.rows import writers_of
from ..errors import ParamsError
from ..models.architectures import vocabulary_rows
from ..prompts.system_message import templates_of
from ..teachers.local.teacher import check_apart
from ..teachers.local.weights import SELF
from ..teachers.multi.entries import TeacherList
from ..teachers.multi.teachers_of_run import teachers_of_run

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..config.distillation_arguments import DistillationArguments
    from ..models.loading import ModelSource
    from ..prompts.template import Template
    from ..teachers.base import Teacher
    from ..teachers.same_weights import Student

    GivenTeacher = str | PreTrainedModel | Teacher | None


@dataclass(frozen=True)
class StudentModel:
    """A run's student, known before its weights are read.

    Attributes:
        config: Its configuration.
        tokenizer: Its tokenizer, with the chat template that it is trained with.
        generation_config: How it generates.
        weights: Its weights, for a teacher that shares them and for a check against another teacher's.
        device: Where a local teacher goes.
        source: Where another process can load its weights; None if they are only in memory.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    generation_config: GenerationConfig | None
    weights: Student
    device: torch.device | str
    source: ModelSource | None = None

    @property
    def rows(self) -> int:
        """Rows of its LM head."""
        return vocabulary_rows(self.config)

    @property
    def sides(self) -> dict[str, Any]:
        """The student's templates and tokenizer for a teacher that shares its weights."""
        return {"config": self.config, "tokenizer": self.tokenizer, "generation_config": self.generation_config}


@dataclass(frozen=True)
class Plan:
    """A run's teachers and prompts as its settings name them.

    Attributes:
        given: The one teacher: a loaded model, a teacher or a name; None if there are several, or none is named.
        student_template: The student's prompt.
        teacher_template: The teacher's prompt, if there is one teacher.
        listed: The teachers of a run with several; None for one teacher under one prompt.
        writers: The teachers that generated the data's completions, if no teacher is named.
    """

    given: GivenTeacher
    student_template: Template
    teacher_template: Template
    listed: TeacherList | None = None
    writers: tuple[str, ...] = ()


def plan_setup(
    settings: DistillationArguments,
    given: GivenTeacher = None,
    *,
    student: str | torch.nn.Module,
    data: Dataset | None,
    templates: tuple[Template, Template] | None = None,
) -> Plan:
    """Read and check the teachers and prompts of a run's settings; needs no model.

    Args:
        settings: A trainer's configuration, or a run's parameters.
        given: Replaces the settings' `teacher_model`.
        student: The student, or its name.
        data: The rows to train on.
        templates: The student's and the teacher's, if they are parsed already.

    Raises:
        ParamsError: There is no teacher, or see `teachers_of_run` and `templates_of`.
        TemplateError: A template that does not parse.
        TeacherError: The student is its own teacher; see `check_apart`.
    """
    given = settings.teacher_model if given is None else given
    student_template, teacher_template = templates or templates_of(settings)
    listed = teachers_of_run(settings, given)
    check_apart(student=student, teacher=given)
    listed_teachers = () if listed is None else listed.of_data
    if EMA in (given, *(entry.model for entry in listed_teachers)):
        check_average(settings)
    for entry in listed_teachers:
        check_apart(student=student, teacher=entry.model)
        if entry.model == SELF and getattr(settings, "peft", True) is False and isinstance(student, str):
            raise ParamsError(
                f"{entry.place}: model is 'self', the student with its adapter switched off, but there is no adapter; "
                "add --peft, or give the model's own name."
            )
    return Plan(given, student_template, teacher_template, listed, _writers(settings, given, data))


def _writers(settings: DistillationArguments, given: GivenTeacher, data: Dataset | None) -> tuple[str, ...]:
    """Return who wrote the data's completions if no teacher is named, else nothing."""
    if not (given is settings.teacher_store is settings.teacher_config is None):
        return ()
    names = () if settings.completions == "teacher" else writers_of(data)
    if not names:
        raise ParamsError(NO_TEACHER)
    return names
