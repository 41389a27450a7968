"""From a configuration to one teacher or several, and to the recipe of either: the doors that trainers use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..config.validation import check_several
from ..data.recipe import Recipe
from ..errors import ParamsError
from ..teachers.base import Teacher
from ..teachers.compatibility import check_fitness
from ..teachers.local.initial_student import StartingTeacher
from ..teachers.local.self_teacher import SELF
from ..teachers.local.teacher import check_apart
from ..teachers.multi.entries import SETTING, TeacherEntry, TeacherList
from ..teachers.multi.preparation import SeveralRecipes
from ..teachers.multi.teacher import SeveralTeachers
from ..teachers.multi.teachers_of_run import teachers_of_run
from ..teachers.same_weights import Student
from ..teachers.server_requirements import weighing
from . import setup as recipes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from ..config.sft_config import DistillationSFTConfig

WHOLE = "the teachers of teacher_config score completions in one piece"


def teacher_of(args: DistillationSFTConfig, given: Any = None, **more: Any) -> Teacher:
    """Return the teacher that a configuration names, or all of those it lists as one, fit for how a run learns.

    Args:
        args: The configuration.
        given: A loaded model, a teacher or a name; None takes the configuration's.
        **more: As `setup.teacher_of`.

    Raises:
        ParamsError: See `read_teachers` and `setup.teacher_of`.
        TeacherError: See `setup.teacher_of`, `SeveralTeachers` and `check_fitness`.
    """
    teacher = _teacher_of(args, given, **more)
    check_fitness(args, teacher)
    return teacher


def _teacher_of(args: DistillationSFTConfig, given: Any, **more: Any) -> Teacher:
    """Return the teacher or the list."""
    if isinstance(given, SeveralTeachers):
        return given  # made here, for the same run
    if args.teacher_config is not None and given is not None:
        raise ParamsError(f"teacher_model does not go together with {SETTING}, which lists the teachers; drop it.")
    listed = teachers_of_run(args, given)
    if listed is None:
        return recipes.teacher_of(args, given, **more)
    loaded: dict[Any, Teacher] = {}
    for entry in listed.teachers:
        if _key(entry) not in loaded:
            model = entry.model if entry.retained is None else _start(entry, **more)
            loaded[_key(entry)] = recipes.teacher_of(_alone(args, entry), model, **more)
    return SeveralTeachers([loaded[_key(entry)] for entry in listed.teachers], listed)


def recipe_of(
    args: DistillationSFTConfig,
    teacher: Teacher,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    weights: Student | None = None,
) -> Recipe | SeveralRecipes:
    """Return how rows become token ids under a configuration, see `setup.recipe_of`."""
    sides: dict[str, Any] = {"tokenizer": tokenizer, "student": student, "weights": weights}
    if not isinstance(teacher, SeveralTeachers):
        return recipes.recipe_of(args, teacher, **sides)
    listed = teacher.listed
    alike = all(entry.template.is_identity for entry in listed.of_data) and args.teacher_system is None
    made, weighed = [], weighing(args, teacher)
    for entry, one in zip(listed.teachers, teacher.teachers, strict=True):
        recipe = replace(recipes.recipe_of(_alone(args, entry), one, **sides), weighing=weighed)
        # messages name its place in the list
        reading = replace(recipe.teacher, template=replace(entry.template, system=recipe.teacher.template.system))
        if entry.retained is not None:  # its prompts are the same for both
            mine, theirs = (replace(side, template=entry.template) for side in (recipe.student, recipe.teacher))
            made.append(replace(recipe, teacher=theirs, student=mine, prompt_dropout=0.0))
            continue
        plain = recipe.plain_text and (alike or not listed.mixed)
        made.append(replace(recipe, teacher=reading, plain_text=plain, in_one_piece=WHOLE))
    return SeveralRecipes(tuple(made), listed, args.seed)


def check_list(settings: Any, *, student: Any = None, given: Any = None) -> TeacherList | None:
    """Check a run's list of teachers, which needs no model; return None where there is none.

    Args:
        settings: Anything with the fields of `DistillationArguments`.
        student: The student, where it is a loaded model.
        given: What is given in the place of `teacher_model`.

    Raises:
        UsageError: See `check_several`, `teachers_of_run` and `check_apart`.
    """
    check_several(settings)
    if isinstance(given, SeveralTeachers):
        return given.listed
    listed = teachers_of_run(settings, given)
    if listed is None:
        return None
    for entry in listed.of_data:
        check_apart(student=student, teacher=entry.model)
        if entry.model == SELF and getattr(settings, "peft", True) is False and isinstance(student, str):
            raise ParamsError(
                f"{entry.place}: model is 'self', the student with its adapter switched off, but there is no adapter; "
                "add --peft, or give the model's own name."
            )
    return listed


def put_names(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Put names into a configuration in the place of loaded models and datasets, so that it can be saved."""
    if isinstance(teacher, SeveralTeachers) and not isinstance(args.teacher_config, (str, type(None))):
        args.teacher_config = teacher.listed.to_dict()
    if not isinstance(args.retain_data, (str, type(None))):
        args.retain_data = f"<{type(args.retain_data).__name__}>"


def describe_teacher(given: Any, teacher: Teacher) -> str:
    """Return what names of teachers were taken for, a line each; see `setup.describe_teacher`."""
    if not isinstance(teacher, SeveralTeachers):
        return recipes.describe_teacher(given, teacher)
    both = zip(teacher.listed.teachers, teacher.teachers, strict=True)
    return "\n".join(filter(None, dict.fromkeys(recipes.describe_teacher(entry.model, one) for entry, one in both)))


def _alone(args: DistillationSFTConfig, entry: TeacherEntry) -> DistillationSFTConfig:
    """Return the configuration of a run with this teacher alone."""
    own = copy.copy(args)
    settings: Mapping[str, Any] = {
        SETTING: None,
        "teacher_prompt_mixture": None,
        "retain_data": None,
        "teacher_model": entry.model,
        "teacher_revision": entry.revision,
        "teacher_prompt_template": entry.prompt,
    }
    for name, value in settings.items():
        setattr(own, name, value)
    return own


def _start(
    entry: TeacherEntry,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
    own: Any = None,
    generation_config: Any = None,
    **_: Any,
) -> StartingTeacher:
    """Return the student's starting point as a teacher."""
    return StartingTeacher(
        own, name=entry.name, config=student, tokenizer=tokenizer, generation_config=generation_config
    )


def _key(entry: TeacherEntry) -> Any:
    """Return what tells one model of the list from another."""
    return (entry.model, entry.revision) if isinstance(entry.model, str) else id(entry.model)
