"""Checks of a run before any weights are read."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.recipes import explaining_recipe
from ..config.training_params import LLMTrainingParams, check_params
from ..data.folder_lock import is_main_rank
from ..errors import ParamsError, nearest, printable
from ..prompts.system_message import templates_of
from ..prompts.template import Template
from ..teachers.multi.entries import read_teachers
from ..teachers.multi.prompt_mixture import plain_mixture
from ..trainer.registry import check_registered, get_trainer
from .hub import check_token
from .project_folder import Project
from .query_checks import prompt_of

if TYPE_CHECKING:
    from torch import nn

    from .run_data import RunData


STORED_QUERIES = (
    "queries_from_prompt cannot be used to write a store; write the inputs by aitraining queries, and give them as "
    "--data-path."
)


@dataclass(frozen=True)
class CheckedRun:
    """A requested run after all checks that need no torch.

    Attributes:
        params: Its parameters. Files that list teachers are already read, since they may change during the run; a
            resumed run has the defaults that it was started with.
        project: The folder that it writes to.
        trainer_class: What trains.
        templates: The student's and the teacher's.
        data: The rows as they were loaded.
    """

    params: LLMTrainingParams
    project: Project
    trainer_class: type
    templates: tuple[Template, Template]
    data: RunData


def check_run(params: LLMTrainingParams, locks: ExitStack, *, writes_store: bool = False) -> CheckedRun:
    """Check a run's parameters, hold the folders that it writes, and load its data; torch is imported last.

    Args:
        params: The run's parameters.
        locks: Releases the folders when it is closed.
        writes_store: Whether it writes a store of targets instead of training.

    Raises:
        UsageError: A request that cannot be fulfilled.
    """
    params, templates = check_settings(params, writes_store=writes_store)
    project = Project(params.project_name)
    writes_project = not writes_store and not params.dry_run
    if writes_project:
        project.check_place(params)
        locks.enter_context(project.locked())
    params = project.as_begun(params)
    if writes_project:
        project.check(params)
    if params.teacher_store is not None and (writes_store or writes_project):
        _lock_store(params.teacher_store, locks, only_unfinished=writes_project)
    data = check_data(params, templates)
    # the first thing that imports torch
    trainer_class = get_trainer(params.trainer, use_distillation=params.use_distillation)
    return CheckedRun(params, project, trainer_class, templates, data)


def check_settings(
    params: LLMTrainingParams, *, writes_store: bool = False
) -> tuple[LLMTrainingParams, tuple[Template, Template]]:
    """Check a run's settings against each other; return them with the files that list teachers read, and the templates.

    Args:
        params: The run's parameters.
        writes_store: Whether it writes a store of targets instead of training.

    Raises:
        UsageError: A request that cannot be fulfilled.
    """
    check_params(params)
    if writes_store and params.teacher_store is None:
        raise ParamsError("there is no store to write; give --output a folder.")
    if writes_store and params.teacher_model is None:
        raise ParamsError("teacher_model is missing; give --teacher-model the model whose targets are to be written.")
    check_token(params)
    templates = templates_of(params)
    if params.queries_from_prompt is not None:
        if writes_store:
            raise ParamsError(STORED_QUERIES)
        prompt_of(templates[1])
    params = copy.copy(params)
    if params.teacher_config is not None:
        params.teacher_config = read_teachers(params.teacher_config)  # type: ignore[assignment]
    if params.teacher_prompt_mixture is not None:
        params.teacher_prompt_mixture = plain_mixture(params.teacher_prompt_mixture)  # type: ignore[assignment]
    check_registered(params.trainer, use_distillation=params.use_distillation)
    return params, templates


def check_data(params: LLMTrainingParams, templates: tuple[Template, Template]) -> RunData:
    """Return a run's rows; refuse models, data and columns that are not there.

    Args:
        params: What `check_settings` returned.
        templates: And its templates.

    Raises:
        UsageError: Something that cannot be found or read.
    """
    from .early_checks import check_columns, check_named, check_teacher_given
    from .run_data import load_run_data

    check_named(params)
    data = load_run_data(params, templates)
    check_teacher_given(params, data.train)
    with explaining_recipe(params, distills=params.distills):
        check_columns(data.train, params, templates)
    return data


def _lock_store(folder: str, locks: ExitStack, *, only_unfinished: bool) -> None:
    from ..teachers.target_store.folder import TargetFolder

    store = TargetFolder(folder)
    if not (only_unfinished and store.complete):  # a finished one has any number of readers
        locks.enter_context(store.locked())


def finished_project(params: LLMTrainingParams) -> Project | None:
    """Return the project that a run would resume if it has finished, and say that nothing is left to do; else None.

    Args:
        params: The run's parameters, checked here.

    Raises:
        ParamsError: See `check_params`.
        ProjectError: The finished run has learned something else, or for another number of steps.
    """
    if not isinstance(params, LLMTrainingParams) or not params.resume or params.dry_run:  # see `check_run`
        return None
    check_params(params)
    project = Project(params.project_name)
    if not project.is_finished:
        return None
    project.check_finished_same(params)
    if is_main_rank():
        print(printable(f"The run in {project.folder} has finished; there is nothing left to resume."))
    return project


def check_target_modules(given: str, model: nn.Module) -> None:
    """Refuse names of modules that a model does not have.

    Args:
        given: Names separated by commas, or "all-linear".
        model: The student, with or without weights.

    Raises:
        ParamsError: Naming the nearest module.
    """
    if given == "all-linear":
        return
    there = sorted({path.rpartition(".")[2] for path, _ in model.named_modules()} - {""})
    for name in (part.strip() for part in given.split(",")):
        if not any(path == name or path.endswith(f".{name}") for path, _ in model.named_modules()):
            raise ParamsError(
                f"target_modules has {name!r}, which is not a module of the student.{nearest(name, there)} Give names "
                "such as q_proj,v_proj, or all-linear."
            )
