"""What is left to do of a run in stages, after the checks of all stages, which need no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from ..config.stages import Stage, naming_stage, own_settings, params_of_stages
from ..config.training_params import LLMTrainingParams, check_params
from ..errors import ParamsError
from ..models.adapters import LORA
from ..prompts.template import Template, text_of_file
from .checks import check_data, check_settings
from .project_folder import MANIFEST, PROMPTS, Project
from .result_files import check_result
from .stage_folders import StageFolders

if TYPE_CHECKING:
    from .run_data import RunData

SHOWN = ("epochs", "distill_temperature", "distill_alpha")  # of every stage, on its line
NAMES = {"distill_temperature": "T", "distill_alpha": "alpha", "teacher_prompt_template": "prompt"}
LONGEST = 40  # characters of a value on a stage's line
AGAIN = f"delete its {MANIFEST} and add --resume to train it again"
CheckedStage = tuple[LLMTrainingParams, tuple[Template, Template], "RunData"]


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        number: Counted from 1.
        params: Its parameters; its model is that of the stage before.
        own: Its settings that are not the same in all stages.
        checked: Its parameters with the first stage's model, its templates and its rows.
        finished: Whether it has finished, so that it is not run.
    """

    number: int
    params: LLMTrainingParams
    own: dict[str, object]
    checked: CheckedStage
    finished: bool = False

    def shown(self) -> dict[str, object]:
        """Return the settings that its line and the page show, with the text of a prompt's file."""
        values = {name: getattr(self.params, name) for name in SHOWN} | self.own
        return {name: text_of_file(value, name) if name in PROMPTS else value for name, value in values.items()}

    def line(self, count: int) -> str:
        """Return the line that it begins with."""
        values = self.shown()
        shown = ", ".join(f"{NAMES.get(name, name)} {_short(value)}" for name, value in values.items())
        return f"Stage {self.number} of {count} ({self.params.project_name}): {shown}"


@dataclass(frozen=True)
class StagePlan:
    """All stages of a run, checked.

    Attributes:
        folders: Where each is.
        stages: In order.
    """

    folders: StageFolders
    stages: tuple[PlannedStage, ...]


def plan_stages(params: LLMTrainingParams, stages: Sequence[Stage], locks: ExitStack) -> StagePlan:
    """Check all stages, hold the project folder, and find out which stages have finished.

    Args:
        params: Settings of all stages.
        stages: See `params_of_stages`.
        locks: Releases the folder when it is closed.

    Raises:
        UsageError: A request that cannot be fulfilled; names the stage.
    """
    if not isinstance(params, LLMTrainingParams):
        check_params(params)  # which says what was given
    made = params_of_stages(params, stages)
    folders = StageFolders(Project(params.project_name), len(made))
    for number, each in enumerate(made, 1):
        each.project_name = str(folders.of(number))
        if number < len(made):
            each.push_to_hub = False
    _check_adapters(made)
    checked = _check_each(made)
    if not params.dry_run:
        for number in range(2, len(made) + 1):
            made[number - 1].model = str(folders.of(number - 1))
        finished = _check_folders(params, made, folders, locks)
    else:
        finished = 0
    planned = [
        PlannedStage(number, each, own_settings(each, made), checked[number - 1], number <= finished)
        for number, each in enumerate(made, 1)
    ]
    return StagePlan(folders, tuple(planned))


def _check_adapters(stages: Sequence[LLMTrainingParams]) -> None:
    """Refuse an adapter of other settings than the one before it, which is trained further."""
    for number, (before, own) in enumerate(pairwise(stages), 2):
        differs = next((name for name in LORA if getattr(before, name) != getattr(own, name)), None)
        if differs is not None and all(each.peft and not each.merge_adapter for each in (before, own)):
            raise ParamsError(
                f"stage {number}: {differs} is {getattr(own, differs)!r}, but it trains the adapter of stage "
                f"{number - 1} further, which has {getattr(before, differs)!r}; give both the same, or merge_adapter "
                f"in stage {number - 1}."
            )


def _check_each(stages: Sequence[LLMTrainingParams]) -> list[CheckedStage]:
    """Check the stages as runs, with the first one's model: the settings of all, then their data."""
    settings: list[tuple[LLMTrainingParams, tuple[Template, Template]]] = []
    for number, params in enumerate(stages, 1):
        with naming_stage(number):
            settings.append(check_settings(params))
    checked: list[CheckedStage] = []
    for number, (params, templates) in enumerate(settings, 1):
        with naming_stage(number):
            checked.append((params, templates, check_data(params, templates)))
    return checked


def _check_folders(
    params: LLMTrainingParams, made: Sequence[LLMTrainingParams], folders: StageFolders, locks: ExitStack
) -> int:
    """Refuse folders that hold other work; return how many stages have finished, and say how each other one starts."""
    project = folders.project
    project.check_place(params)
    locks.enter_context(project.locked())
    if not params.overwrite:
        folders.check(resume=params.resume)
    finished = folders.finished() if params.resume else 0
    for number, each in enumerate(made, 1):
        own = Project(each.project_name)
        with naming_stage(number):
            if number <= finished:
                own.check_finished_same(each)
                continue
            each.resume = params.resume and number == finished + 1 and folders.is_resumable(number)
            # what a stage of this run has left that nothing continues: it is out of date, or has no checkpoint
            each.overwrite = params.overwrite or (params.resume and not each.resume and folders.has_begun(number))
            own.check(each)
    if 0 < finished < len(made):
        with naming_stage(finished):
            check_result(folders.of(finished), again=AGAIN)
    return finished


def _short(value: object) -> str:
    if isinstance(value, str):
        line = " ".join(value.split())
        return repr(line if len(line) <= LONGEST else f"{line[:LONGEST]}…")
    return f"{value:g}" if isinstance(value, float) else str(value)
