"""Alpha and temperature over training: constant, or on their way from a start to an end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..losses.signals import LossSettings


@dataclass(frozen=True)
class Annealing:
    """How the loss is weighed at each optimizer step.

    Attributes:
        start: The settings of the first step.
        alpha_end: Alpha after the last step; None leaves it where it is.
        temperature_end: Temperature after the last step; None leaves it where it is.
        schedule: "linear" or "cosine".
    """

    start: LossSettings
    alpha_end: float | None = None
    temperature_end: float | None = None
    schedule: str = "linear"

    def at(self, step: int, steps: int) -> LossSettings:
        """Return the settings of an optimizer step.

        Args:
            step: Optimizer steps that are done.
            steps: Those of the whole training.
        """
        share = min(step / steps, 1.0) if steps > 0 else 0.0
        alpha = annealed(self.start.alpha, self.alpha_end, share, self.schedule)
        return replace(
            self.start,
            alpha=alpha,
            temperature=annealed(self.start.temperature, self.temperature_end, share, self.schedule),
        )

    @property
    def end(self) -> LossSettings:
        """The settings after the last step, with which evaluation measures."""
        return self.at(1, 1)

    def figures(self, settings: LossSettings) -> dict[str, float]:
        """Return what moves, as a log line has it: nothing where both are constant."""
        moving = {"alpha": self.alpha_end, "temperature": self.temperature_end}
        return {f"distill_{name}": getattr(settings, name) for name, end in moving.items() if end is not None}


def annealed(start: float, end: float | None, share: float, schedule: str) -> float:
    """Return a value on its way from `start` to `end`.

    "linear" is start + share * (end - start); "cosine" is half a cosine's way, slow at both ends:
    end + (start - end) * (1 + cos(pi * share)) / 2.

    Args:
        start: At share 0.
        end: At share 1; None is `start`.
        share: Of the steps that are done, 0 to 1.
        schedule: "linear" or "cosine".
    """
    if end is None or share == 0:
        return start
    if share == 1:
        return end
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
    return start + share * (end - start)
