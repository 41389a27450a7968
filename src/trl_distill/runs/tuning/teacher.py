"""The teacher's part in a search, done once: its completions and targets, which all trials read.

Targets are kept as stores of the kind "hidden" unless another is asked for: they give each trial the loss that the
teacher itself would, at any temperature and with any divergence. Trials whose teacher says something else, or reads
another prompt, have a store of their own. Where targets cannot be stored, the trials run the teacher, and share its
completions and a server's log-probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.endpoints import endpoint_of
from ...config.search_space import Range, Space
from ...config.training_params import LLMTrainingParams
from ...data.atomic_file import copy_file
from ...errors import ParamsError, TeacherError, printable
from .plan import Plan, teacher_key

if TYPE_CHECKING:
    from .folder import TuningFolder

HIDDEN = "hidden"


class SharedTeacher:
    """What the teacher of a search has written and computed.

    Args:
        folder: The search's.
        space: The space, for the temperatures of a store that has only those it was written for.
        verbose: Show all messages and bars of the libraries too.
    """

    def __init__(self, folder: TuningFolder, space: Space, *, verbose: bool) -> None:
        self.folder, self.space, self.verbose = folder, space, verbose
        self._unstored: set[str] = set()  # keys of teachers whose targets cannot be stored

    def ready(self, plan: Plan, project: Path) -> LLMTrainingParams:
        """Return the parameters of a trial's run, its teacher's completions and targets made.

        Args:
            plan: The trial.
            project: Its folder, into which the completions of earlier trials are copied.

        Raises:
            UsageError: See `teach`.
        """
        params = copy.copy(plan.params)
        params.project_name, params.resume = str(project), True
        params.overwrite = params.dry_run = False
        kind = params.teacher_store_kind or HIDDEN
        temperatures = None if kind == HIDDEN else params.teacher_temperatures or _temperatures(params, self.space)
        key = teacher_key(params, kind=kind, temperatures=temperatures)
        if key not in self._unstored and _can_store(params):
            params.teacher_store, params.teacher_store_kind = str(self.folder.teacher / key), kind
            params.teacher_temperatures = temperatures
            if not self._has_store(params):
                self._unstored.add(key)
            _copy(self.folder.teacher / key, project, _completions())
        _lend(self.folder.teacher, project)
        return params

    def collect(self, project: Path) -> None:
        """Keep what a trial's run and evaluation had written, for the trials after it."""
        self.folder.teacher.mkdir(parents=True, exist_ok=True)
        for name in _kept_names():
            mine, kept = project / name, self.folder.teacher / name
            # a trial begins with all that is kept, and adds to it
            if mine.is_file() and (not kept.is_file() or kept.stat().st_size < mine.stat().st_size):
                copy_file(mine, kept)

    def give(self, project: Path) -> None:
        """Copy the teacher's completions into the project of a run that is to come."""
        written, stores = _completions(), sorted(self.folder.teacher.glob("*/manifest.json"))
        for source in (self.folder.teacher, *(manifest.parent for manifest in stores)):
            _copy(source, project, written)
        _lend(self.folder.teacher, project)

    def _seed(self, store: Path) -> None:
        """Copy completions of a dry run, or of other trials, into a new store: those that it needs are found by key."""
        from ...teachers.target_store.folder import COMPLETIONS
        from ...trainer.recipe_setup import STORE

        for source in (self.folder.teacher, self.folder.path):
            _copy(source, store, {STORE: COMPLETIONS})

    def _has_store(self, params: LLMTrainingParams) -> bool:
        """Write the store of a trial's parameters if need be; without targets, take it out of them and return False."""
        from ...teachers.target_store.folder import TargetFolder
        from ..api import teach

        assert params.teacher_store is not None
        if TargetFolder(params.teacher_store).complete:
            return True
        self._seed(TargetFolder(params.teacher_store).path)
        print("The teacher's completions and targets, for all trials:", flush=True)
        try:
            teach(params, verbose=self.verbose)
        except TeacherError as error:
            if TargetFolder(params.teacher_store).begun:
                raise
            print(printable(f"Its targets are not stored, so each trial runs the teacher: {error}"))
            params.teacher_store = params.teacher_store_kind = params.teacher_temperatures = None
            return False
        return True


def _can_store(params: LLMTrainingParams) -> bool:
    """Whether the settings of a trial may be used with a store of targets."""
    teacher = params.teacher_model
    if params.teacher_store is not None or (isinstance(teacher, str) and endpoint_of(teacher) is not None):
        return False
    tried = copy.copy(params)
    tried.teacher_store = "store"
    try:
        tried.validate()
    except ParamsError:
        return False
    return True


def _temperatures(params: LLMTrainingParams, space: Space) -> str:
    """Return the temperatures for which a store is written.

    Raises:
        ParamsError: They are a range.
    """
    values = space.get("distill_temperature", (params.distill_temperature,))
    if isinstance(values, Range):
        raise ParamsError(
            f"distill_temperature is the range {values}, and a store of the kind {params.teacher_store_kind!r} is "
            "written for single temperatures; list them, or drop --teacher-store-kind."
        )
    return ",".join(f"{value}" for value in values)


def check_stored_divergences(plans: Sequence[Plan]) -> None:
    """Refuse a divergence that a store of the requested kind has too few tokens for.

    Raises:
        ParamsError: Naming it.
    """
    for plan in plans:
        kind, divergence = plan.params.teacher_store_kind, plan.params.distill_divergence
        if kind not in (None, HIDDEN) and divergence != "forward_kl":
            raise ParamsError(
                f"distill_divergence {divergence!r} needs the teacher's probability of every token, and targets of "
                f"the kind {kind!r} have that of a few; drop --teacher-store-kind."
            )


def _kept_names() -> tuple[str, ...]:
    from ...teachers.server_requirements import LOGPROBS
    from ...trainer.recipe_setup import STORE
    from ..evaluation_run import STUDENTS

    return STORE, LOGPROBS, STUDENTS


def _completions() -> dict[str, str]:
    """Return the name of the completions in a store of targets and in a project."""
    from ...teachers.target_store.folder import COMPLETIONS
    from ...trainer.recipe_setup import STORE

    return {COMPLETIONS: STORE, STORE: STORE}


def _lend(kept: Path, project: Path) -> None:
    """Copy what is kept into a project that does not have it yet."""
    from ..evaluate import copy_stores

    copy_stores(kept, project)


def _copy(source: Path, target: Path, names: dict[str, str]) -> None:
    for name, wanted in names.items():
        if (source / name).is_file() and not (target / wanted).exists():
            target.mkdir(parents=True, exist_ok=True)
            copy_file(source / name, target / wanted)
