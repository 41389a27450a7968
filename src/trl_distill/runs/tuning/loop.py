"""The loop of a search: the next trial, its outcome, and which models are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config.search_space import typed
from ...config.setting_names import name_settings
from ...config.training_params import LLMTrainingParams
from ...errors import printable
from .folder import TuningFolder
from .output import TrialOutput
from .plan import Plan, plan_of
from .result import Objective, Trial, TuningResult, objective_of, ranked
from .search import Search
from .summary import outcome_line
from .teacher import SharedTeacher
from .trial import run_trial


class SearchLoop:
    """Runs the trials of a search.

    Args:
        folder: Its project.
        search: Chooses the trials.
        teacher: The teacher's part, done once.
        evaluation: How each trial is evaluated, arguments of `evaluate_distillation`.
        keep_all: Whether the models of all trials are kept.
        verbose: Whether all output of the trials is shown.
    """

    def __init__(
        self,
        folder: TuningFolder,
        search: Search,
        teacher: SharedTeacher,
        *,
        evaluation: Mapping[str, Any],
        keep_all: bool,
        verbose: bool,
    ) -> None:
        self.folder, self.search, self.teacher = folder, search, teacher
        self.evaluation, self.keep_all = evaluation, keep_all
        self.output = TrialOutput(verbose=verbose)
        self._trials: dict[int, Trial] = {}

    def run(self, params: LLMTrainingParams, plans: Sequence[Plan]) -> None:
        """Run every trial that the search chooses and that has no outcome yet."""
        self._trials = {trial.number: trial for trial in self.folder.outcomes(plans)}
        if self._trials:
            count = len(self._trials)
            print(f"{count} {'trial was' if count == 1 else 'trials were'} run earlier.")
        while (settings := self.search.next()) is not None:
            plan = plan_of(params, settings)
            outcome, project = self.folder.claim(plan)
            if outcome is None or not self.search.accepts(outcome):
                line = f"Trial {self.search.number} of {self.search.total}: {name_settings(typed(settings))}"
                print(printable(line), flush=True)
                outcome = self._run(plan, project)
            self._trials[outcome.number] = outcome
            self.search.tell(outcome, self.folder.objective)

    def result(self) -> TuningResult:
        """Return the trials, ranked."""
        objective: Objective = self.folder.objective or "score"
        return TuningResult(
            objective, ranked(list(self._trials.values()), objective), paths={"project": self.folder.path}
        )

    def plan_of_best(self, params: LLMTrainingParams, plans: Sequence[Plan]) -> Plan:
        """Return the best trial as it was planned; its settings may be of an earlier space."""
        best = self.result().best
        identity = self.folder.identity(best)
        return next((plan for plan in plans if plan.identity == identity), None) or plan_of(params, best.settings)

    def _run(self, plan: Plan, project: Path) -> Trial:
        params = self.teacher.ready(plan, project)
        search = self.folder.path.resolve().name  # the trackers' project, with a run for each trial
        params.log_project = params.log_project or search
        params.run_name = f"{params.run_name or search}-{project.name}"
        outcome, evaluation = run_trial(
            plan,
            params,
            project,
            evaluation=self.evaluation,
            falls_behind=self.search.falls_behind,
            output=self.output,
        )
        outcome = replace(outcome, settings=self.folder.settings_of(plan))
        self.teacher.collect(project)
        if evaluation is not None and self.folder.objective is None:
            self.folder.decide(objective_of(evaluation), with_references=evaluation.with_references)
        self.folder.keep(outcome, plan)
        self._trials[outcome.number] = outcome
        result = self.result()
        if not self.keep_all:
            self.folder.discard_models(except_of=result.best if result.finished else None)
        print(printable(f"  {name_settings(outcome_line(outcome, result))}"), flush=True)
        return outcome
