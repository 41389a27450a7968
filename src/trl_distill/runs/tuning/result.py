"""The result of a search: trials, which one is best, and whether it differs from the second by more than noise."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...config.search_space import Settings
from ...evaluation.result import AFTER, Evaluation, Interval

Objective = Literal["gap closed", "divergence", "score"]
State = Literal["finished", "pruned", "failed"]
# settings of which each value is another teacher
TEACHERS = frozenset(
    (
        *("teacher_model", "teacher_revision", "teacher_dtype", "teacher_quantization"),
        *("teacher_prompt_template", "teacher_system", "teacher_chat_template", "chat_template_kwargs"),
    )
)
# settings of which each value is another student before training
STUDENTS = frozenset(("model", "dtype", "quantization", "student_prompt_template", "student_system", "chat_template"))


@dataclass(frozen=True)
class Rows:
    """What an evaluation measured of the trained student, for each held-out row.

    Attributes:
        scores: The deciding score, 0 to 100; NaN for a row without one.
        divergence: Mean KL(teacher || student) per token in nats; empty if the teacher gives no distribution.
        tokens: Number of tokens that `divergence` is a mean of; empty like it.
    """

    scores: tuple[float, ...]
    divergence: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        number: Its number, from 1.
        settings: The settings that were tuned, by name.
        folder: Its project.
        state: "finished", "pruned" (stopped since it fell behind) or "failed".
        reason: Why it was pruned or failed; empty if it is finished.
        metric: Name of the deciding score; empty if it is not finished.
        score: Mean of that score over the held-out rows, 0 to 100; NaN if it is not finished.
        gap_closed: (after - before) / (teacher - before) of the score; None if it cannot be measured.
        divergence: KL(teacher || student) of a token in nats; None if the teacher gives no distribution.
        rows: What was measured of each row; None if it is not finished.
        seconds: Duration of training and evaluation.
        with_references: Whether the scores compare with references of the rows, not with the teacher's completions.
    """

    number: int
    settings: Settings
    folder: Path
    state: State
    reason: str = ""
    metric: str = ""
    score: float = math.nan
    gap_closed: Interval | None = None
    divergence: float | None = None
    rows: Rows | None = None
    seconds: float = 0.0
    with_references: bool = False

    def value(self, objective: Objective) -> float:
        """Return what it is ranked by, of which more is better; NaN if it was not measured."""
        if self.state != "finished":
            return math.nan
        if objective == "gap closed":
            return math.nan if self.gap_closed is None else self.gap_closed.estimate
        if objective == "divergence":
            return math.nan if self.divergence is None else -self.divergence
        return self.score


@dataclass(frozen=True)
class Difference:
    """How much better the best trial is than the second, over the same rows.

    Attributes:
        interval: Points of the score, or nats of the divergence, by which the best is better.
        unit: "points" or "nats".
        rows: Number of rows.
        rows_needed: How many rows would show a difference of this size; None if it is shown, or no number would do.
    """

    interval: Interval
    unit: Literal["points", "nats"]
    rows: int
    rows_needed: int | None = None

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.interval.low > 0


@dataclass(frozen=True)
class TuningResult:
    """The result of a search.

    Attributes:
        objective: What decides: the "gap closed"; the "divergence" from the teacher if the gap cannot be measured; or
            the "score" if the teacher gives no distribution either, or if each trial has a gap of its own.
        trials: All trials, the best first; those that are not finished last.
        difference: How much better the best trial is than the second; None if there is no second.
        paths: Written files by name: `project`, `settings` (the best, as YAML), `page`, `report`.
    """

    objective: Objective
    trials: tuple[Trial, ...]
    difference: Difference | None = None
    paths: Mapping[str, Path] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[Trial, ...]:
        """The trials that have a value, the best first."""
        return tuple(trial for trial in self.trials if not math.isnan(trial.value(self.objective)))

    @property
    def best(self) -> Trial:
        """The best trial; equal ones are ordered by their divergence from the teacher, then by their number."""
        return self.finished[0]

    @property
    def best_differs(self) -> bool | None:
        """Whether the best trial is better than the second by more than noise; None if there is no second."""
        return None if self.difference is None else self.difference.is_beyond_noise


def objective_of(evaluation: Evaluation) -> Objective:
    """Return what trials like an evaluated one are ranked by: the best of what can be measured."""
    gain, after = evaluation.teacher_gain, evaluation.side(AFTER)
    if evaluation.gap_closed is not None and gain is not None and gain.low > 0:
        return "gap closed"
    return "score" if after is None or after.fidelity is None else "divergence"


def objective_among(measured: Objective, names: Collection[str], *, with_references: bool) -> Objective:
    """Return what trials are ranked by if some of their settings differ.

    A gap closed compares students that have the same gap. With another student before training, or another teacher,
    students that are scored by the same references are compared by that score.

    Args:
        measured: What `objective_of` returned.
        names: The settings that are tuned.
        with_references: Whether the references are those of the rows, not the completions of each trial's teacher.
    """
    has_own_references = bool(TEACHERS & set(names)) and not with_references
    has_own_gap = bool((TEACHERS | STUDENTS) & set(names))
    return "score" if measured == "gap closed" and has_own_gap and not has_own_references else measured


def ranked(trials: Sequence[Trial], objective: Objective) -> tuple[Trial, ...]:
    """Return trials with the best first, those without a value last."""

    def place(trial: Trial) -> tuple[float, float, int]:
        value = trial.value(objective)
        divergence = math.inf if trial.divergence is None else trial.divergence
        return math.inf if math.isnan(value) else -value, divergence, trial.number

    return tuple(sorted(trials, key=place))
