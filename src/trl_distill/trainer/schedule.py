"""Alpha and temperature over training: constant, or moving from a start to an end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..losses.settings import LossSettings


@dataclass(frozen=True)
class LossSchedule:
    """How the loss is weighed at each optimizer step.

    Attributes:
        start: The settings of the first step.
        ends: The settings after the last step by name, "alpha" and "temperature", of those that move.
        shape: "linear" or "cosine".
    """

    start: LossSettings
    ends: Mapping[str, float] = field(default_factory=dict)
    shape: str = "linear"

    def at(self, step: int, steps: int) -> LossSettings:
        """Return the settings of an optimizer step.

        Args:
            step: Optimizer steps that are done.
            steps: Those of the whole training.
        """
        share = min(step / steps, 1.0) if steps > 0 else 0.0
        settings = self.start
        for name, end in self.ends.items():
            settings = replace(settings, **{name: annealed(getattr(self.start, name), end, share, self.shape)})  # type: ignore[arg-type]
        return settings

    @property
    def end(self) -> LossSettings:
        """The settings after the last step, with which evaluation measures."""
        return self.at(1, 1)

    def figures(self, settings: LossSettings) -> dict[str, float]:
        """Return the settings that move, as a log line has them."""
        return {f"distill_{name}": getattr(settings, name) for name in self.ends}


def annealed(start: float, end: float, share: float, shape: str) -> float:
    """Return a value on its way from `start` to `end`.

    "linear" is start + share * (end - start); "cosine" is half a cosine's way, slow at both ends:
    end + (start - end) * (1 + cos(pi * share)) / 2.
    """
    if share == 0:
        return start
    if share == 1:
        return end
    if shape == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
    return start + share * (end - start)
