"""Checks of a search before any model loads: every value in its space is looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ...config.evaluation_settings import EvaluationSettings
from ...config.search_space import Space, check_space, grid_size, typed
from ...config.training_params import LLMTrainingParams
from ...config.tuning_settings import TuningSettings
from ...errors import DataError, ParamsError, UsageError, printable
from ...prompts.system_message import templates_of
from .folder import TuningFolder
from .plan import Plan, combinations, plan_of, variations
from .search import check_optuna
from .teacher import check_stored_divergences

if TYPE_CHECKING:
    from datasets import Dataset

    from ..run_data import RunData

HELD_OUT = "the held-out rows"
NO_ROWS = (
    "there are no held-out rows to judge the trials by; add --holdout 0.1, or name a split of the data with "
    "--valid-split."
)


def check_tuning(params: object, space: Space, settings: TuningSettings) -> list[Plan]:
    """Check the settings of a search, and return the trials that were looked at: all, or each value if they are many.

    Raises:
        UsageError: Naming the setting, and the trial if only some have the fault.
    """
    if not isinstance(params, LLMTrainingParams):
        raise ParamsError(f"a search takes LLMTrainingParams, not {type(params).__name__}.")
    if params.push_to_hub:
        raise ParamsError("push_to_hub has no use in a search; add it to the run with the best settings.")
    if params.queries_from_prompt is not None or "queries_from_prompt" in space:
        raise ParamsError(
            "queries_from_prompt would write inputs for each trial; write them once by aitraining queries, and give "
            "them as --data-path."
        )
    check_space(space, trials=settings.trials)
    if settings.trials is not None:
        check_optuna()
    if not isinstance(params.model, (str, type(None))):
        raise ParamsError(
            "model is a loaded model, which the first trial would change; give its name or folder instead."
        )
    plans = [plan_of(params, given) for given in combinations(space)]
    faults = [(plan, fault) for plan in plans if (fault := _fault(plan.params)) is not None]
    if faults:
        plan, fault = faults[0]
        if len(faults) == len(plans):
            raise fault
        text = str(fault).rstrip(".")
        raise type(fault)(f"{text} (in the trial {typed(plan.settings)}).") from None
    check_stored_divergences(plans)
    return plans


def _fault(params: LLMTrainingParams) -> UsageError | None:
    try:
        params.validate()
        templates_of(params)
        if not params.distills:
            raise ParamsError(f"trainer {params.trainer!r} has no teacher to judge by; add --use-distillation.")
        if params.teacher_model is None and params.teacher_store is None and params.teacher_config is None:
            raise ParamsError("teacher_model is missing; trials are compared with one.")
    except UsageError as error:
        return error
    return None


def check_named(params: LLMTrainingParams, space: Space, settings: TuningSettings) -> RunData:
    """Check that what the values name is there, and return the rows that all trials share; torch is imported last.

    Raises:
        UsageError: Naming the setting.
    """
    from ...trainer.registry import check_registered
    from ..early_checks import check_columns, check_evaluation, check_reference_column, check_teacher_given
    from ..early_checks import check_named as check_there
    from ..evaluation_inputs import evaluated_params
    from ..run_data import load_run_data

    data: RunData | None = None
    fields: set[str] = set()
    judged = EvaluationSettings(metric=settings.metric, reference_column=settings.reference_column)
    for name, given in variations(space):
        own = plan_of(params, given).params
        templates = templates_of(own)
        check_registered(own.trainer, use_distillation=own.use_distillation)
        check_there(own)
        named = {field for template in templates for field in template.fields} - {"input"}
        if data is None:
            data, fields = load_run_data(own, templates), named
            if data.held_out is None:
                raise DataError(NO_ROWS)
            check_teacher_given(own, data.train)
            check_reference_column(settings.reference_column, data.held_out.column_names, source=HELD_OUT)
        check_columns(data.train, own, templates)
        if data.holdout_split is not None and named != fields:
            raise ParamsError(
                f"{name} has templates with different columns, and --holdout would hold out other rows for each; hold "
                "them out yourself and name their split with --valid-split."
            )
        check_evaluation(evaluated_params(own), judged, student=None, before=None)
    assert data is not None
    assert data.held_out is not None
    _check_references(data.held_out, params, settings)
    folder = TuningFolder(params.project_name)
    begun = folder.trials.is_dir() if params.overwrite else bool(folder.outcomes())
    kept = 0 if begun else _kept_at_once(space, settings)  # what is there, or is replaced, needs no more room
    for name, given in variations(space):
        _check_trainable(plan_of(params, given).params, name, data, kept=kept)
    return data


def _kept_at_once(space: Space, settings: TuningSettings) -> int:
    """Return how many finished trials keep their models while the last one runs."""
    others = min(settings.trials or math.inf, grid_size(space)) - 1
    return int(others if settings.keep_all else min(others, 1))


def _check_references(rows: Dataset, params: LLMTrainingParams, settings: TuningSettings) -> None:
    """Refuse references that a metric cannot use, before a trial is trained."""
    from ...data.pretokenized import is_tokenized
    from ...data.rows import Columns, read_rows
    from ...data.streaming import without_dataset_bars
    from ...evaluation.metrics import metrics_for
    from ...evaluation.questions import references_of

    if is_tokenized(rows):
        return
    with without_dataset_bars():
        references = references_of(read_rows(rows, Columns.of(params))[0], column=settings.reference_column)
    metrics_for(settings.metric or (), references if any(references) else None)


def _check_trainable(params: LLMTrainingParams, changed: str | None, data: RunData, *, kept: int) -> None:
    """Refuse what only the libraries and the models' files know: optimizers, precisions, modules, vocabularies."""
    from ...config.training_params import FIELDS
    from ...trainer.registry import get_trainer
    from ..checks import CheckedRun
    from ..disk_estimate import Planned, check_space
    from ..prepare import rehearse, trainer_config
    from ..project_folder import Project

    if changed is not None and FIELDS[changed].metadata["help"].group in ("Training", "Logging and saving"):
        trainer_config(params)
        return
    trainer_class = get_trainer(params.trainer, use_distillation=params.use_distillation)
    checked = CheckedRun(params, Project(params.project_name), trainer_class, templates_of(params), data)
    planned = rehearse(checked)
    if changed is None:  # the others write about as much
        left = kept * sum(one.left for one in planned)
        what = f"what is kept of {'the best trial' if kept == 1 else f'{kept:,} other trials'}"
        planned += [Planned(checked.project.folder, left, what)] if kept else []
        check_space(planned, lambda line: print(printable(line)))
