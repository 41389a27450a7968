"""`train(params)`: prepare, fit, save. The command and the library both use it.

User errors are found before a model loads, and before torch is imported if possible.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from ..config.setting_names import settings_named_as
from ..config.training_params import LIBRARY, LLMTrainingParams
from ..errors import printable
from ..trainer.standard_streams import unbreakable_streams
from .checks import CheckedRun, check_run, finished_project
from .full_disk import RESUME, explaining_full_disk
from .library_output import quiet, without_library_bars
from .memory import memory_explained, sentence_of_run
from .result import RunResult

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from .prepare import PreparedRun


def train(params: LLMTrainingParams, *, verbose: bool = False) -> Any:
    """Train and return the model, as in the guide. See `run` for the whole result.

    Args:
        params: The run's parameters.
        verbose: Show all messages and bars of the libraries too.

    Returns:
        The trained model; None after a dry run.

    Raises:
        UsageError: A request that cannot be fulfilled; raised before a model loads.
        RunInterrupted: Ctrl-C or SIGTERM while it trains; a checkpoint is written.
    """
    return run(params, verbose=verbose).model


@settings_named_as(LIBRARY)
def run(params: LLMTrainingParams, *, verbose: bool = False) -> RunResult:
    """Train and return model, tokenizer, metrics, paths and trainer.

    The project folder then holds the model (safetensors), its tokenizer, the configuration, the metrics and a
    model card. With `dry_run` it stops after the pre-flight and writes only completions that were paid for.

    Args:
        params: The run's parameters.
        verbose: Show all messages and bars of the libraries too.

    Raises:
        UsageError: A request that cannot be fulfilled; raised before a model loads.
        RunInterrupted: Ctrl-C or SIGTERM while it trains; a checkpoint is written.
    """
    return run_with_callbacks(params, (), verbose=verbose)


def run_with_callbacks(
    params: LLMTrainingParams, callbacks: Sequence[TrainerCallback], *, verbose: bool = False
) -> RunResult:
    """Do what `run` does, with callbacks of the caller that watch the training.

    Args:
        params: The run's parameters.
        callbacks: Called after the run's own.
        verbose: Show all messages and bars of the libraries too.

    Raises:
        UsageError, RunInterrupted: See `run`.
    """
    with memory_explained(lambda error: sentence_of_run(error, params)):
        return _run(params, callbacks, verbose=verbose)


def _run(params: LLMTrainingParams, callbacks: Sequence[TrainerCallback], *, verbose: bool) -> RunResult:
    project = finished_project(params)
    if project is not None:
        from .finished import result_of_finished

        return result_of_finished(project, params)
    prepared, result, seconds = run_unfinished(params, verbose=verbose, callbacks=callbacks)
    if not params.dry_run:
        prepared.state.print(printable(closing_of_run(prepared, result, seconds)))
    return result


def run_unfinished(
    params: LLMTrainingParams, *, verbose: bool, callbacks: Sequence[TrainerCallback] = ()
) -> tuple[PreparedRun, RunResult, float]:
    """Check, prepare, fit and save; return the prepared run, its result and the seconds that it took; see `run`."""
    started = time.perf_counter()
    with ExitStack() as shown:
        checked = _check(params, shown, verbose=verbose)
        from ..models.out_of_memory import doing
        from .fit import fit, telling_checkpoint
        from .prepare import prepare
        from .save import save
        from .trackers import tracked

        shown.enter_context(explaining_full_disk(checked.project.folder, again=RESUME))
        prepared = prepare(checked)
        if params.dry_run:
            return prepared, prepared.dry_result(), time.perf_counter() - started
        shown.enter_context(tracked(params, checked.project.folder))
        trained = fit(prepared, callbacks)
        with telling_checkpoint(checked.project), doing("saving the result"):
            result = save(trained)
    return prepared, result, time.perf_counter() - started


def closing_of_run(prepared: PreparedRun, result: RunResult, seconds: float) -> str:
    """Return the last lines that a run prints."""
    from .next_steps import steps_after
    from .summary import closing_lines

    steps = steps_after(prepared, result.tokenizer)
    return closing_lines(result.paths, result.metrics, steps, seconds=seconds)


def quiet_libraries(params: LLMTrainingParams) -> AbstractContextManager[None]:
    """Hide messages of libraries that matter to no user of these parameters."""
    given = (getattr(params, name, None) for name in ("quantization", "teacher_quantization"))
    return quiet(four_bits="int4" in given)


def _check(params: LLMTrainingParams, shown: ExitStack, *, verbose: bool, writes_store: bool = False) -> CheckedRun:
    """Return the checked run; until `shown` is closed, its folders are held and library output is hidden."""
    shown.enter_context(unbreakable_streams())
    if not verbose:
        shown.enter_context(quiet_libraries(params))
    checked = check_run(params, shown, writes_store=writes_store)
    if not verbose:
        shown.enter_context(without_library_bars())  # which loads the libraries
    return checked


@settings_named_as(LIBRARY)
def teach(params: LLMTrainingParams, *, repair: bool = False, verbose: bool = False) -> int:
    """Write a run's targets into its `teacher_store`, and return how many shards were written.

    Existing targets are kept, so the same call resumes after a kill. `run` with the same parameters then
    trains from the store and loads no teacher.

    Args:
        params: The run's parameters; those of training are ignored.
        repair: Make damaged files of the store again instead of refusing them.
        verbose: Show all messages and bars of the libraries too.

    Raises:
        ParamsError: No store or no teacher is named.
        UsageError: A request that cannot be fulfilled; raised before a model loads.
    """
    with memory_explained(lambda error: sentence_of_run(error, params)):
        return _teach(params, repair=repair, verbose=verbose)


def _teach(params: LLMTrainingParams, *, repair: bool, verbose: bool) -> int:
    with ExitStack() as shown:
        checked = _check(params, shown, verbose=verbose, writes_store=True)
        from ..teachers.target_store.folder import TargetFolder
        from ..trainer.distributed import read_whole
        from .prepare import prepare

        folder = TargetFolder(str(params.teacher_store))
        if repair:
            folder.discard_damaged()
        elif folder.begun:
            folder.check(folder.manifest())
        shown.enter_context(explaining_full_disk(folder.path))
        prepared = prepare(checked, writes_store=True)
        if not prepared.state.is_main_process:
            return 0
        assert prepared.setup is not None
        with read_whole(prepared.args):
            return prepared.setup.write_store(prepared.named_datasets)
