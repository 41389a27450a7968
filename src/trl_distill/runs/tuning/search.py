"""How a search chooses its trials: every combination, or optuna's suggestions with pruning."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...config.search_space import Range, Settings, Space, grid, grid_size
from ...errors import UsageError
from .plan import digest

if TYPE_CHECKING:
    import optuna

    from .result import Objective, Trial

STARTUP = 4  # trials that are not pruned, with which the others are compared
REPEATS = 20  # suggestions in a row that were tried already, after which an untried combination is chosen


class Search(Protocol):
    """Chooses trials."""

    total: int

    @property
    def number(self) -> int:
        """Which trial of them `next` returned, from 1."""

    def next(self) -> Settings | None:
        """Return the settings of the next trial; None if there are no more."""

    def accepts(self, trial: Trial) -> bool:
        """Whether an earlier outcome of the same settings stands, and is not run again."""

    def falls_behind(self, share: float, figure: float) -> bool:
        """Return whether the running trial is to be stopped.

        Args:
            share: The share of its steps that it has done, in 0..1.
            figure: What its evaluation measured, of which more is better.
        """

    def tell(self, trial: Trial, objective: Objective | None) -> None:
        """Take the outcome of the trial whose settings `next` returned last."""


class Grid:
    """Every combination of a space, in the order in which it is written."""

    def __init__(self, space: Space) -> None:
        self.total = int(grid_size(space))
        self.number = 0
        self._left = iter(grid(space))

    def next(self) -> Settings | None:
        self.number += 1
        return next(self._left, None)

    def accepts(self, trial: Trial) -> bool:
        return trial.state != "pruned"

    def falls_behind(self, share: float, figure: float) -> bool:
        return False

    def tell(self, trial: Trial, objective: Objective | None) -> None:
        return None


def check_optuna() -> None:
    """Refuse `trials` without optuna.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec("optuna") is None:
        raise UsageError(
            'trials needs the package optuna; `pip install "trl-distill[tune]"`, or drop --trials to try every '
            "combination."
        )


class OptunaSearch:
    """Trials suggested by optuna's TPE sampler, and stopped by its median pruner.

    J. Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NeurIPS 2011); T. Akiba et al., "Optuna: A
    Next-generation Hyperparameter Optimization Framework" (KDD 2019). The journal in the project has a study for each
    space; trials that were run for another one are added to it if its settings have their values.

    Args:
        space: The space.
        journal: File of optuna's storage.
        trials: How many trials to make, those that are there already included.
        earlier: Outcomes in the project.
        objective: What they are ranked by; None before the first is finished.
        seed: Seed of the sampler.
    """

    def __init__(
        self,
        space: Space,
        journal: Path,
        *,
        trials: int,
        earlier: Iterable[Trial],
        objective: Objective | None,
        seed: int,
    ) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.total = space, int(min(trials, grid_size(space)))
        self.distributions = {name: _distribution(values) for name, values in space.items()}
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            study_name=digest(json.dumps({name: str(values) for name, values in space.items()})),
            load_if_exists=True,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        )
        # a search that goes on does not draw the same trials again
        self.study.sampler = optuna.samplers.TPESampler(seed=seed + len(self.study.get_trials(deepcopy=False)))
        self._asked: optuna.Trial | None = None
        self._seen: dict[str, None] = {}
        self._repeats = 0
        self._untried = _every(space)
        self._begin(list(earlier), objective)

    @property
    def number(self) -> int:
        return len(self._seen) + 1

    def next(self) -> Settings | None:
        if len(self._seen) >= self.total:
            return None
        if self._repeats >= REPEATS:
            untried = next((one for one in self._untried if _key(one) not in self._seen), None)
            if untried is None:
                return None
            self.study.enqueue_trial(untried)
        self._asked = self.study.ask(self.distributions)
        return dict(self._asked.params)

    def accepts(self, trial: Trial) -> bool:
        return True

    def falls_behind(self, share: float, figure: float) -> bool:
        assert self._asked is not None
        self._asked.report(figure, round(100 * share))
        return self._asked.should_prune()

    def tell(self, trial: Trial, objective: Objective | None) -> None:
        from optuna.trial import TrialState

        assert self._asked is not None
        value = math.nan if objective is None else trial.value(objective)
        if trial.state == "pruned":
            self.study.tell(self._asked, state=TrialState.PRUNED)
        elif math.isnan(value):
            self.study.tell(self._asked, state=TrialState.FAIL)
        else:
            self.study.tell(self._asked, value)
        key = _key(self._asked.params)
        self._repeats = self._repeats + 1 if key in self._seen else 0
        self._seen[key] = None

    def _begin(self, earlier: list[Trial], objective: Objective | None) -> None:
        """Let the study know what the project has, and ask first for the trial that a kill has cut short."""
        from optuna.trial import TrialState, create_trial

        known, finished = set(), {_key(self._own(trial.settings)) for trial in earlier}
        for frozen in self.study.get_trials(deepcopy=False):
            if frozen.state is TrialState.RUNNING:
                self.study.tell(frozen.number, state=TrialState.FAIL)
                if frozen.params.keys() == self.space.keys() and _key(frozen.params) not in finished:
                    self.study.enqueue_trial(frozen.params)
            elif frozen.state.is_finished() and frozen.state is not TrialState.FAIL:
                known.add(_key(frozen.params))
        for trial in earlier:
            settings = self._own(trial.settings)
            if not all(_contains(values, settings[name]) for name, values in self.space.items()):
                continue
            self._seen[_key(settings)] = None
            value = math.nan if objective is None else trial.value(objective)
            if _key(settings) not in known and not math.isnan(value):
                self.study.add_trial(create_trial(params=settings, distributions=self.distributions, value=value))

    def _own(self, settings: Settings) -> Settings:
        """Return a trial's values of the settings that this search tunes."""
        return {name: settings.get(name) for name in self.space}


def _distribution(values: tuple[object, ...] | Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(values)  # type: ignore[arg-type]
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.is_log)
    return FloatDistribution(values.low, values.high, log=values.is_log)


def _contains(values: tuple[object, ...] | Range, value: object) -> bool:
    if isinstance(values, Range):
        return isinstance(value, (int, float)) and values.low <= value <= values.high
    return value in values


def _every(space: Space) -> Iterator[Settings]:
    """Yield the combinations of a finite space; nothing of another, which does not run out of suggestions."""
    if math.isinf(grid_size(space)):
        return iter(())
    listed: Space = {
        name: tuple(range(int(values.low), int(values.high) + 1)) if isinstance(values, Range) else values
        for name, values in space.items()
    }
    return grid(listed)


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True, default=str)
