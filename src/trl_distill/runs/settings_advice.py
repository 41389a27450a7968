"""The pre-flight's line about the learning rate, from runs of the same job, model size and number of rows and steps.

docs/recipes.md has the same figures, which benchmarks/defaults.py prints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.setting_names import name_settings
from ..config.training_params import LLMTrainingParams

if TYPE_CHECKING:
    from ..teachers.base import Teacher

Setting = tuple[float, float]  # learning rate, temperature
BAKING, DISTILLATION = "prompt baking", "knowledge distillation"
ALIKE = 2.0  # a run's size, rows, steps and rates are at most so many times larger or smaller than measured ones
NOISE = 0.3  # of the gap, between two runs: more than twice the standard error of the difference over 36 rows
SMALLEST_ALPHA = 0.5  # below, cross-entropy decides; the runs have 0.7


@dataclass(frozen=True)
class Measured:
    """Runs that differ in their learning rate and temperature alone.

    Attributes:
        job: `BAKING` or `DISTILLATION`.
        parameters: Of the student, all of which are trained.
        rows: Rows to train on.
        steps: Optimizer steps.
        closed: The share of the gap to the teacher that a run closed, by temperature and learning rate.
    """

    job: str
    parameters: float
    rows: int
    steps: int
    closed: Mapping[float, Mapping[float, float]]

    def covers(self, *, job: str, parameters: int, rows: int, steps: int) -> bool:
        """Whether a run is like these."""
        pairs = (parameters, self.parameters), (rows, self.rows), (steps, self.steps)
        return job == self.job and all(_distance(one, other) <= math.log(ALIKE) for one, other in pairs)

    def better(self, lr: float, temperature: float) -> dict[Setting, float] | None:
        """Return the share closed by the run next to a learning rate and temperature, and the most that one closed.

        None if another learning rate alone makes no difference beyond noise, or this one was not measured.
        """
        warm = min(self.closed, key=lambda known: _distance(known, temperature))
        by_lr = self.closed[warm]
        near = min(by_lr, key=lambda known: _distance(known, lr))
        is_measured = min(by_lr) / ALIKE <= lr <= max(by_lr) * ALIKE
        if not is_measured or max(by_lr.values()) - by_lr[near] < NOISE:
            return None
        shares = {(rate, t): share for t, row in self.closed.items() for rate, share in row.items()}
        best = max(shares, key=lambda setting: shares[setting])
        return {setting: shares[setting] for setting in ((near, warm), best)}


EMBEDDED = 4.3e6  # parameters of the embedded model
# fmt: off
TABLE = (
    Measured(BAKING, EMBEDDED, 60, 45,
             {1: {5e-5: 0.17, 2e-4: 0.19, 1e-3: 0.78}, 3: {5e-5: 0.06, 2e-4: 0.17, 1e-3: 0.58}}),
    Measured(BAKING, EMBEDDED, 240, 45,
             {1: {5e-5: 0.14, 2e-4: 0.31, 1e-3: 0.94}, 3: {5e-5: 0.06, 2e-4: 0.25, 1e-3: 0.89}}),
    Measured(BAKING, EMBEDDED, 240, 180,
             {1: {5e-5: 0.36, 1e-3: 1.0}, 3: {5e-5: 0.25, 1e-3: 1.0}}),
    Measured(DISTILLATION, EMBEDDED, 60, 45,
             {1: {5e-5: 0.17, 2e-4: 0.25, 1e-3: 0.92}, 3: {5e-5: 0.03, 2e-4: 0.28, 1e-3: 1.0}}),
    Measured(DISTILLATION, EMBEDDED, 240, 45,
             {1: {5e-5: 0.14, 2e-4: 0.31, 1e-3: 0.97}, 3: {5e-5: 0.0, 2e-4: 0.28, 1e-3: 1.0}}),
)
# fmt: on


def advise(params: LLMTrainingParams, teacher: Teacher, *, parameters: int, rows: int, steps: int) -> str:
    """Return a sentence if runs like this one closed more of the gap with another learning rate; "" otherwise.

    Args:
        params: The run's parameters.
        teacher: Its teacher.
        parameters: Of the student.
        rows: Rows that it trains on.
        steps: Optimizer steps.
    """
    job = _job(params, teacher)
    if job is None:
        return ""
    for measured in TABLE:
        if not measured.covers(job=job, parameters=parameters, rows=rows, steps=steps):
            continue
        found = measured.better(params.lr, params.distill_temperature)
        if found is not None:
            closed = [
                f"--lr {lr:g} with --distill-temperature {warm:g} closed {share:.0%}"
                for (lr, warm), share in found.items()
            ]
            like = f"{job}, {measured.rows} rows, {measured.steps} steps"
            return name_settings(f"in runs like this one ({like}) {closed[0]} of the gap to the teacher, {closed[1]}")
    return ""


def _distance(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _job(params: LLMTrainingParams, teacher: Teacher) -> str | None:
    """Return the job if runs of it were measured: all weights, completions of the data or the teacher, forward KL."""
    can = teacher.capabilities
    like = (can.single, can.dense, can.same_tokenizer, not params.peft, not params.distill_on_policy_fraction)
    if not all(like) or params.distill_divergence != "forward_kl" or params.distill_alpha < SMALLEST_ALPHA:
        return None
    return BAKING if can.of_student or params.teacher_model == params.model else DISTILLATION
