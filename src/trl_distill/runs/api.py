"""`train(params)`: load, prepare, train, save, report - the one engine behind the command and the library.

Everything that can be wrong in what the user typed is found before a model loads.
"""

from __future__ import annotations

import copy
from typing import Any

from ..config.doors import entered
from ..config.training_params import LIBRARY, LLMTrainingParams, check_params
from ..errors import ParamsError
from ..prompts.system_message import templates_of
from ..teachers.multi.entries import read_teachers
from ..teachers.multi.prompt_mixture import plain_mixture
from ..trainer.registry import get_trainer
from .hub import check_token
from .project_folder import Project
from .run import Run, RunResult


def train(params: LLMTrainingParams) -> Any:
    """Train and return the model, as in the guide. See `run` for the whole result.

    Args:
        params: The run's parameters.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    return run(params).model


@entered(LIBRARY)
def run(params: LLMTrainingParams) -> RunResult:
    """Train and return model, tokenizer, metrics, paths and trainer.

    The project folder then holds the model (safetensors), its tokenizer, the configuration, the metrics and a
    model card. With `dry_run` it stops after the pre-flight and writes nothing but completions paid for.

    Raises:
        UsageError: Something that was asked for cannot be done; raised before a model loads.
        RunInterrupted: Ctrl-C; a checkpoint is written.
    """
    return _checked(params).go()


@entered(LIBRARY)
def teach(params: LLMTrainingParams, *, repair: bool = False) -> int:
    """Write the targets of a run into its `teacher_store`, and return how many shards were made.

    What is there already is kept: the same call goes on after a kill. `run` with the same parameters then trains
    from the store and loads no teacher.

    Args:
        params: The run's parameters; those of training are not looked at.
        repair: Make damaged files of the store again instead of refusing them.

    Raises:
        ParamsError: No store or no teacher is named.
        UsageError: Something that was asked for cannot be done; raised before a model loads.
    """
    check_params(params)
    if params.teacher_store is None:
        raise ParamsError("there is no store to write; give --output a folder.")
    if params.teacher_model is None:
        raise ParamsError("teacher_model is missing; give --teacher-model the model whose targets are to be written.")
    steps = _checked(params, trains=False)
    from ..teachers.target_store.folder import TargetFolder

    folder = TargetFolder(params.teacher_store)
    if repair:
        folder.discard_damaged()
    elif folder.begun:
        folder.check(folder.manifest())
    return steps.teach()


def _checked(params: LLMTrainingParams, *, trains: bool = True) -> Run:
    """Check what needs no library and load the data."""
    check_params(params)
    check_token(params)
    templates = list(templates_of(params))
    if params.teacher_config is not None:  # read once: the file may change while a run goes on
        params = copy.copy(params)
        params.teacher_config = read_teachers(params.teacher_config)  # type: ignore[assignment]
    if params.teacher_prompt_mixture is not None:
        params = copy.copy(params)
        params.teacher_prompt_mixture = plain_mixture(params.teacher_prompt_mixture)  # type: ignore[assignment]
    trainer_class = _trainer_class(params)
    project = Project(params.project_name)
    params = project.as_begun(params)
    if trains and not params.dry_run:
        project.check(params)
    from ..data.loading import load_data

    data = load_data(
        params.data_path,
        train_split=params.train_split,
        valid_split=params.valid_split,
        config_name=params.data_config,
    )
    return Run(params, project, trainer_class, data, templates)


def _trainer_class(params: LLMTrainingParams) -> type:
    """Return the registered trainer; an unknown name ends here."""
    return get_trainer(params.trainer, use_distillation=params.use_distillation)
