"""Alpha and temperature over training: constant, or moving from a start to an end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .settings import LossSettings


@dataclass(frozen=True)
class LossSchedule:
    """The settings of the loss at each optimizer step.

    Attributes:
        start: The settings of the first step.
        ends: Alpha and temperature after the last step by name, of those that move.
        shape: "linear" or "cosine".
        changed: By setting, the requested value and why the teacher supports another only.
    """

    start: LossSettings
    ends: Mapping[str, float] = field(default_factory=dict)
    shape: str = "linear"
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

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

    @property
    def learns_distribution(self) -> bool:
        """Whether any step learns the teacher's distribution."""
        return max(self.start.alpha, self.end.alpha) > 0

    @property
    def used(self) -> dict[str, float]:
        """The changed settings as they are used."""
        return {name: getattr(self.start, name.removeprefix("distill_")) for name in self.changed}

    def moves(self, name: str) -> bool:
        """Whether a setting ends at another value than it starts at."""
        return name in self.ends and self.ends[name] != getattr(self.start, name)

    def describe(self, name: str) -> str:
        """Return a setting, and where it moves to if it does: "3", "3 to 1"."""
        start = f"{getattr(self.start, name):g}"
        return f"{start} to {self.ends[name]:g}" if name in self.ends else start

    def with_constant(self, name: str, value: float, *, why: str) -> LossSchedule:
        """Return the schedule with a setting that stays at a value other than the requested one."""
        return replace(
            self,
            start=replace(self.start, **{name: value}),  # type: ignore[arg-type]
            ends={other: end for other, end in self.ends.items() if other != name},
            changed={**self.changed, f"distill_{name}": (self.describe(name), why)},
        )

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
