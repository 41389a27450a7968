"""From a configuration to one teacher or several, and to the recipe of either: the doors that trainers use."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import recipes
from .arguments import check_several
from .combining import SeveralRecipes
from .errors import ParamsError
from .fitness import check_fitness
from .preparation import Recipe
from .teacher_list import SETTING, TeacherEntry, TeacherList, read_teachers
from .teachers import SELF, SeveralTeachers, Teacher, check_apart

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from .config import DistillationSFTConfig

WHOLE = "the teachers of teacher_config score completions in one piece"


def teacher_of(args: DistillationSFTConfig, given: Any = None, **more: Any) -> Teacher:
    """Return the teacher that a configuration names, or all of those it lists as one, fit for how a run learns.

    Args:
        args: The configuration.
        given: A loaded model, a teacher or a name; None takes the configuration's.
        **more: As `recipes.teacher_of`.

    Raises:
        ParamsError: See `read_teachers` and `recipes.teacher_of`.
        TeacherError: See `recipes.teacher_of`, `SeveralTeachers` and `check_fitness`.
    """
    teacher = _teacher_of(args, given, **more)
    check_fitness(args, teacher)
    return teacher


def _teacher_of(args: DistillationSFTConfig, given: Any, **more: Any) -> Teacher:
    """Return the teacher or the list."""
    if isinstance(given, SeveralTeachers):
        return given  # made here, for the same run
    if args.teacher_config is None:
        return recipes.teacher_of(args, given, **more)
    if given is not None:
        raise ParamsError(f"teacher_model does not go together with {SETTING}, which lists the teachers; drop it.")
    listed = read_teachers(args.teacher_config)
    loaded: dict[Any, Teacher] = {}
    for entry in listed.teachers:
        if _key(entry) not in loaded:
            loaded[_key(entry)] = recipes.teacher_of(_alone(args, entry), entry.model, **more)
    return SeveralTeachers([loaded[_key(entry)] for entry in listed.teachers], listed)


def recipe_of(
    args: DistillationSFTConfig,
    teacher: Teacher,
    *,
    tokenizer: PreTrainedTokenizerBase,
    student: PretrainedConfig,
) -> Recipe | SeveralRecipes:
    """Return how rows become token ids under a configuration, see `recipes.recipe_of`."""
    sides: dict[str, Any] = {"tokenizer": tokenizer, "student": student}
    if not isinstance(teacher, SeveralTeachers):
        return recipes.recipe_of(args, teacher, **sides)
    listed = teacher.listed
    alike = all(entry.template.is_identity for entry in listed.teachers)
    made = []
    for entry, one in zip(listed.teachers, teacher.teachers, strict=True):
        recipe = recipes.recipe_of(_alone(args, entry), one, **sides)
        reading = replace(recipe.teacher, template=entry.template)  # messages name its place in the list
        plain = recipe.plain_text and (alike or not listed.mixed)
        made.append(replace(recipe, teacher=reading, plain_text=plain, in_one_piece=WHOLE))
    return SeveralRecipes(tuple(made), listed, args.seed)


def check_list(settings: Any, *, student: Any = None) -> TeacherList | None:
    """Check a run's list of teachers, which needs no model; return None where there is none.

    Args:
        settings: Anything with the fields of `DistillationArguments`.
        student: The student, where it is a loaded model.

    Raises:
        UsageError: See `check_several`, `read_teachers` and `check_apart`.
    """
    check_several(settings)
    if settings.teacher_config is None:
        return None
    listed = read_teachers(settings.teacher_config)
    for entry in listed.teachers:
        check_apart(student=student, teacher=entry.model)
        if entry.model == SELF and getattr(settings, "peft", True) is False and isinstance(student, str):
            raise ParamsError(
                f"{entry.place}: model is 'self', the student with its adapter switched off, but there is no adapter; "
                "add --peft, or give the model's own name."
            )
    return listed


def put_names(args: DistillationSFTConfig, teacher: Teacher) -> None:
    """Put names into a configuration in the place of a list's loaded models, so that it can be saved."""
    if isinstance(teacher, SeveralTeachers) and not isinstance(args.teacher_config, str):
        args.teacher_config = teacher.listed.plain()  # type: ignore[assignment]


def told(given: Any, teacher: Teacher) -> str:
    """Return what names of teachers were taken for, a line each; see `recipes.told`."""
    if not isinstance(teacher, SeveralTeachers):
        return recipes.told(given, teacher)
    both = zip(teacher.listed.teachers, teacher.teachers, strict=True)
    return "\n".join(filter(None, dict.fromkeys(recipes.told(entry.model, one) for entry, one in both)))


def _alone(args: DistillationSFTConfig, entry: TeacherEntry) -> DistillationSFTConfig:
    """Return the configuration of a run with this teacher alone."""
    own = copy.copy(args)
    settings: Mapping[str, Any] = {
        SETTING: None,
        "teacher_model": entry.model,
        "teacher_revision": entry.revision,
        "teacher_prompt_template": entry.prompt,
    }
    for name, value in settings.items():
        setattr(own, name, value)
    return own


def _key(entry: TeacherEntry) -> Any:
    """Return what tells one model of the list from another."""
    return (entry.model, entry.revision) if isinstance(entry.model, str) else id(entry.model)
