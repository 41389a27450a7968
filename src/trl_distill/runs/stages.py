"""`train_stages(params, stages)`: several runs in one project, each from the model of the one before.

The guide's "Progressive Distillation" as one call, whose finished stages are not run again. Nothing here imports torch
before all stages are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..config.setting_names import name_settings, settings_named_as
from ..config.stages import Stage, naming_stage
from ..config.training_params import LIBRARY, LLMTrainingParams
from ..data.folder_lock import is_main_rank, processes
from ..errors import printable
from ..trainer.registry import get_trainer
from ..trainer.standard_streams import unbreakable_streams
from .api import closing_of_run, quiet_libraries, run_unfinished
from .checks import CheckedRun
from .full_disk import RESUME
from .memory import free_memory, memory_explained, sentence_of_run
from .project_folder import Project
from .result import RunResult
from .stage_plan import PlannedStage, StagePlan, plan_stages

# settings on which what the teacher writes depends; with the same ones a stage finds the completions of another
OF_COMPLETIONS = ("teacher_model", "teacher_prompt_template", "teacher_system", "teacher_config")
AGAIN = "run the same command again to resume"  # of a teacher that is interrupted; a run in stages needs the flag
SHOWN = ("train_loss", "train_kl", "eval_loss", "eval_kl")  # figures of a stage's last line


def train_stages(params: LLMTrainingParams, stages: Sequence[Stage], *, verbose: bool = False) -> Any:
    """Train in stages, as in the guide's "Progressive Distillation", and return the last stage's model.

    Each stage starts from the model of the one before. `project_name` is then the project of the last stage, which
    `evaluate` and `export` take as that of any run; the stages before it are in its folders `stage-1`, `stage-2`, ...
    With `resume`, stages that have finished are not run again.

    Example:
        >>> stages = [(1, "Very detailed teacher prompt..."), (2, "Simple teacher prompt...")]
        >>> model = train_stages(LLMTrainingParams(...), stages)  # doctest: +SKIP

    Args:
        params: Settings of all stages; `model` is what the first one starts from.
        stages: For each stage a mapping of the settings that are its own, such as `{"teacher_prompt_template": ...,
            "distill_temperature": 2.0, "epochs": 1}`, or a pair of its number and its teacher's prompt. A teacher's
            prompt without `{input}` gets a blank line and `{input}` at its end.
        verbose: Show all messages and bars of the libraries too.

    Returns:
        The trained model; None after a dry run.

    Raises:
        UsageError: A request that cannot be fulfilled, of any stage; raised before the first model loads.
        RunInterrupted: Ctrl-C or SIGTERM while it trains; a checkpoint is written.
    """
    result = run_stages(params, stages, verbose=verbose)
    return None if result is None else result.model


@settings_named_as(LIBRARY)
def run_stages(
    params: LLMTrainingParams, stages: Sequence[Stage], *, verbose: bool = False, needs_model: bool = True
) -> RunResult | None:
    """Run the stages that are left, and return the result of the last one; see `train_stages`.

    Args:
        params: Settings of all stages.
        stages: The stages.
        verbose: Show all messages and bars of the libraries too.
        needs_model: Whether the model is loaded if all stages have finished; if not, None is returned.

    Raises:
        UsageError: A request that cannot be fulfilled, of any stage; raised before the first model loads.
        RunInterrupted: Ctrl-C or SIGTERM while it trains; a checkpoint is written.
    """
    with ExitStack() as held:
        held.enter_context(unbreakable_streams())
        if not verbose:
            held.enter_context(quiet_libraries(params))
        plan = plan_stages(params, stages, held)
        count = len(plan.stages)
        if not params.dry_run:
            _rehearse(plan)
        result: RunResult | None = None
        for stage in plan.stages:
            if stage.finished:
                _say(f"Stage {stage.number} of {count} has finished ({stage.params.project_name}).")
                continue
            if result is not None:
                result = None
                free_memory()  # of the stage's model, which the next one reads from its folder
            with _explaining(stage.number):
                result = _run(plan, stage, verbose=verbose)
        if result is not None:
            return result
        _say("All stages have finished; there is nothing left to resume.")
        last = plan.stages[-1].params
        if not needs_model:
            return None
        from .finished import result_of_finished

        return result_of_finished(plan.folders.project, last)


def _rehearse(plan: StagePlan) -> None:
    """Check what the models' configurations and the disk decide, of all stages that are left."""
    left = [stage for stage in plan.stages if not stage.finished]
    if not left:
        return
    from .disk_estimate import check_space
    from .prepare import rehearse

    planned = []
    for stage in left:
        params, templates, data = stage.checked
        with naming_stage(stage.number):
            trainer = get_trainer(params.trainer, use_distillation=params.use_distillation)
            planned += rehearse(CheckedRun(params, Project(params.project_name), trainer, templates, data))
    check_space(planned, lambda _: None)


@contextmanager
def _explaining(number: int) -> Iterator[None]:
    """Put the number of the stage before an error and a signal's sentence, which says how to continue."""
    try:
        with naming_stage(number):
            yield
    except KeyboardInterrupt as stop:
        said = str(stop).replace(AGAIN, RESUME) or f"interrupted; {RESUME}."
        stop.args = (name_settings(f"stage {number}: {said}"),)
        raise


def _run(plan: StagePlan, stage: PlannedStage, *, verbose: bool) -> RunResult:
    """Run one stage."""
    params, count = stage.params, len(plan.stages)
    if not params.dry_run:
        _wait_for_everyone(params)  # all look at the folders before one of them changes anything
        if is_main_rank():
            plan.folders.begin(stage.number)
            _copy_completions(plan, stage)
        _wait_for_everyone(params)
    _say(stage.line(count))

    with memory_explained(lambda error: sentence_of_run(error, params)):
        prepared, result, seconds = run_unfinished(params, verbose=verbose)
    if params.dry_run:
        return result
    rest = ""
    if stage.number == count:
        _add_to_page(plan)
        _, _, rest = closing_of_run(prepared, result, seconds).partition("\n")  # its first line is this one
    figures = ", ".join(f"{name} {result.metrics[name]:.4g}" for name in SHOWN if name in result.metrics)
    prepared.state.print(printable(f"Stage {stage.number} of {count} is done in {seconds:.0f} s: {figures}.\n{rest}"))
    return result


def _wait_for_everyone(params: LLMTrainingParams) -> None:
    """Wait for the other processes of a launch, if there are any."""
    if processes() == 1:
        return
    from accelerate import PartialState

    from ..config.sft_config import from_params

    PartialState(cpu=from_params(params).use_cpu).wait_for_everyone()


def _copy_completions(plan: StagePlan, stage: PlannedStage) -> None:
    """Copy the completions of an earlier stage whose teacher reads the same prompt, so that it is not asked again."""
    from .evaluate import copy_stores

    for earlier in reversed(plan.stages[: stage.number - 1]):
        if all(getattr(earlier.params, name) == getattr(stage.params, name) for name in OF_COMPLETIONS):
            copy_stores(*(Path(each.params.project_name).expanduser() for each in (earlier, stage)))
            return


def _add_to_page(plan: StagePlan) -> None:
    """Add all stages to the page of the last one."""
    if not is_main_rank():
        return
    from ..evaluation.page.stages import stage_of
    from ..evaluation.page.write import add_stages, read_training

    try:
        found = []
        for stage in plan.stages:
            place = plan.folders.of(stage.number)
            folder = "" if stage.number == len(plan.stages) else place.name
            found.append(stage_of(stage.number, folder, stage.shown(), read_training(place)))
        add_stages(plan.folders.project.folder, found)
    except Exception as error:  # the run is finished
        print(printable(f"The page does not show the stages: {type(error).__name__}: {error}"))


def _say(line: str) -> None:
    if is_main_rank():
        print(printable(line), flush=True)
