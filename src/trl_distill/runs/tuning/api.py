"""`tune(params, space)`: try settings, judge each by held-out rows, and say which are best."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ...config.search_space import Space, read_space, typed
from ...config.setting_names import in_python, name_settings, settings_named_as
from ...config.training_params import FIELDS, LLMTrainingParams
from ...config.tuning_settings import TUNING_FIELDS, TuningSettings
from ...data.folder_lock import processes
from ...errors import DistillError, ParamsError, RunInterrupted, printable
from ...trainer.standard_streams import unbreakable_streams
from ..full_disk import explaining_full_disk
from ..library_output import quiet, without_library_bars
from .checks import check_named, check_tuning
from .folder import TuningFolder
from .plan import Plan, digest, identity_of
from .result import TuningResult

if TYPE_CHECKING:
    from ..run_data import RunData
    from .search import Search

PYTHON = in_python({**FIELDS, **TUNING_FIELDS}, {"metric": "metrics"})
AGAIN = "run the same search again to go on"


@settings_named_as(PYTHON)
def tune(
    params: LLMTrainingParams,
    space: Mapping[str, object],
    *,
    trials: int | None = None,
    keep_all: bool = False,
    reference_column: str | None = None,
    metrics: str | Sequence[str] = (),
    verbose: bool = False,
) -> TuningResult:
    """Run a training for each of many settings, evaluate every student on the same held-out rows, and rank them.

    Example:
        >>> found = tune(params, {"distill_temperature": [1, 2, 3], "distill_alpha": [0.5, 0.9]})  # doctest: +SKIP
        >>> found.best.settings, found.best_differs  # doctest: +SKIP

    A trial is ranked by the gap closed that `evaluate` measures, or by the divergence from the teacher if the gap
    cannot be measured. All trials have the same seed. The teacher's completions and targets are made once. After a
    kill the same call goes on: finished trials are not run again. More values or trials extend the search.

    Args:
        params: The parameters that all trials share; `project_name` is the folder of the search.
        space: By setting, a list of values, or a range as a text such as "1e-5..1e-3", which needs `trials`.
        trials: Search the space with this many trials by optuna; None runs every combination.
        keep_all: Keep the models of all trials, not only the best one's.
        reference_column: Column of the held-out rows with the reference (default: the data's completions).
        metrics: One name or several, see `aitraining evaluate --help`; the first one decides.
        verbose: Show all that the runs and evaluations print, and all messages of the libraries.

    Raises:
        UsageError: A value that cannot be used; raised before a model loads.
        DistillError: No trial finished.
        RunInterrupted: Ctrl-C or SIGTERM while a trial trains.
    """
    settings = TuningSettings()
    given = {"trials": trials, "keep_all": keep_all, "reference_column": reference_column, "metric": metrics or None}
    for name, value in given.items():
        settings.set(name, value)
    result = run_tuning(params, read_space(space), settings, verbose=verbose)
    if result is None:
        raise ParamsError("dry_run has trained nothing, so that there is no result; drop it to search.")
    return result


def run_tuning(
    params: LLMTrainingParams, space: Space, settings: TuningSettings, *, verbose: bool = False
) -> TuningResult | None:
    """Do what `tune` does; None after a dry run.

    Args:
        params: The parameters that all trials share.
        space: The values to try.
        settings: How the search is made.
        verbose: See `tune`.
    """
    if processes() > 1:
        raise ParamsError("a search runs in one process; start it without a launcher.")
    with ExitStack() as stack:
        stack.enter_context(unbreakable_streams())
        if not verbose:
            stack.enter_context(quiet())
        plans = check_tuning(params, space, settings)
        folder = TuningFolder(params.project_name)
        folder.check_place()
        if not params.dry_run:
            stack.enter_context(folder.locked())
        if not params.overwrite:
            folder.check_same(_parameters(params, space, settings), list(space))
        data = check_named(params, space, settings)
        shared = {**_parameters(params, space, settings), "rows": _rows(data)}
        if not params.overwrite:
            folder.check_same(shared, list(space))
        if not verbose:
            stack.enter_context(without_library_bars())  # which loads the libraries
        if params.dry_run:
            what = "Each value of the space" if settings.trials else f"{len(plans)} trials"
            _dry_run(plans, what, verbose=verbose)
            return None
        stack.enter_context(explaining_full_disk(folder.path))
        folder.begin(shared, list(space), overwrite=params.overwrite)
        return _search(params, space, settings, folder, plans, data, verbose=verbose)


def _parameters(params: LLMTrainingParams, space: Space, settings: TuningSettings) -> dict[str, object]:
    """Return what all trials share and what they are judged by, by name."""
    kept = {name: value for name, value in identity_of(params).items() if name not in space}
    return {**kept, "metric": settings.metric, "reference_column": settings.reference_column}


def _rows(data: RunData) -> str:
    from ...data.data_fingerprint import fingerprint
    from ...data.file_readers import PLACE

    return digest(*(fingerprint(rows, leave_out=(PLACE,)) for rows in data.datasets.values()))


def _search(
    params: LLMTrainingParams,
    space: Space,
    settings: TuningSettings,
    folder: TuningFolder,
    plans: Sequence[Plan],
    data: RunData,
    *,
    verbose: bool,
) -> TuningResult:
    """Run the trials that have no outcome yet, and write the result."""
    from .loop import SearchLoop
    from .summary import conclude
    from .teacher import SharedTeacher

    loop = SearchLoop(
        folder,
        _search_of(params, space, settings, folder, plans),
        SharedTeacher(folder, space, verbose=verbose),
        evaluation=_evaluation(params, settings, plans, data),
        keep_all=settings.keep_all,
        verbose=verbose,
    )
    frozen = gc.get_freeze_count()
    try:
        loop.run(params, plans)
    except KeyboardInterrupt as interrupt:
        interrupt.args = (f"interrupted: finished trials are kept in {folder.trials}; {AGAIN}.",)
        raise
    except RunInterrupted as stop:
        raise RunInterrupted(
            f"stopped on request with a checkpoint; finished trials are kept in {folder.trials}; {AGAIN}.",
            exit_code=stop.exit_code,
        ) from None
    finally:
        if not frozen:  # by the caller
            gc.unfreeze()  # see `trial`
    result = loop.result()
    if not result.finished:
        reasons = "; ".join(sorted({trial.reason for trial in result.trials}))
        raise DistillError(f"no trial finished: {reasons}")
    return conclude(folder, result, loop.plan_of_best(params, plans), loop.teacher)


def _search_of(
    params: LLMTrainingParams, space: Space, settings: TuningSettings, folder: TuningFolder, plans: Sequence[Plan]
) -> Search:
    from .folder import JOURNAL
    from .search import Grid, OptunaSearch

    if settings.trials is None:
        folder.discard_unwanted(plans)
        return Grid(space)
    return OptunaSearch(
        space,
        folder.path / JOURNAL,
        trials=settings.trials,
        earlier=folder.outcomes(plans),
        objective=folder.objective,
        seed=params.seed,
    )


def _evaluation(
    params: LLMTrainingParams, settings: TuningSettings, plans: Sequence[Plan], data: RunData
) -> dict[str, Any]:
    """Return how each trial is evaluated: the same rows, metrics and length for all."""
    in_memory = not isinstance(params.data_path, str) and data.holdout_split is None
    longest = max(plan.params.distill_max_teacher_length for plan in plans)
    return {
        "test_data": data.held_out if in_memory else None,
        "teacher_model": None if isinstance(params.teacher_model, str) else params.teacher_model,
        "reference_column": settings.reference_column,
        "metrics": settings.metric or (),
        "max_new_tokens": longest,
        "timed_queries": 0,
    }


def _dry_run(plans: Sequence[Plan], what: str, *, verbose: bool) -> None:
    """Print the trials, and the pre-flight of the first one."""
    from ..api import run

    print(printable(f"{what}:"))
    for plan in plans:
        print(printable(f"  {name_settings(typed(plan.settings))}"))
    own = copy.copy(plans[0].params)
    own.dry_run = True
    run(own, verbose=verbose)
