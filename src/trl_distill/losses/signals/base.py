"""What all kinds of targets have in common: the protocol, the loss's settings, and how the student's head is passed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch.distributed.tensor import DTensor

from ..._trl import gathered
from ..dense import fused_distillation_loss
from ..result import DistillationLoss

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


@dataclass(frozen=True)
class Weighing:
    """How a run weighs its loss, which need not be what was asked for.

    Attributes:
        alpha: Weight of the divergence in the first step.
        temperature: Of both sides in the first step; the divergence is multiplied by its square.
        alpha_end: Alpha after the last step; None leaves it where it is.
        temperature_end: Temperature after the last step; None leaves it where it is.
        changed: By setting, what was asked for and why it is another.
    """

    alpha: float
    temperature: float
    alpha_end: float | None = None
    temperature_end: float | None = None
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def used(self) -> dict[str, float]:
        """The settings that are others than asked for, as they are."""
        return {name: getattr(self, name.removeprefix("distill_")) for name in self.changed}


Known = TypeVar("Known")


@dataclass
class LossSettings:
    """How the loss weighs its two terms; units as in `dense.fused_distillation_loss`."""

    alpha: float
    temperature: float
    divergence: str = "forward_kl"
    jsd_beta: float = 0.5
    impl: str = "fused"


class TeacherSignal(Protocol):
    """What a teacher says of N completion tokens."""

    @property
    def tokens(self) -> int:
        """N."""
        ...

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s] under its head, with alpha above 0.

        Args:
            head: The student's.
            hidden: [N, H_s], the states that predict the completion tokens.
            labels: [N] int64, the completion tokens.
            settings: How the two terms are weighed.

        Raises:
            ValueError: Settings that these targets do not allow.
        """
        ...


def cross_entropy(head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
    """Return the loss of a batch that no teacher is asked about: the cross-entropy's share of it."""
    with whole(head) as student:
        device = device_of(student["student_weight"], hidden)
        hidden, labels = hidden.to(device), labels.to(device)
        return fused_distillation_loss(
            hidden,
            targets=labels,
            teacher_hidden=None,
            teacher_weight=None,
            alpha=0.0,
            temperature=settings.temperature,
            impl=settings.impl,
            **student,
        )


def at_temperature(known: Mapping[float, Known], temperature: float) -> Known:
    """Return what is known at a temperature.

    Raises:
        ValueError: Nothing is; the sentence names the temperatures there are.
    """
    if temperature not in known:
        there = ", ".join(f"{t:g}" for t in sorted(known))
        raise ValueError(
            f"temperature {temperature:g} is not among those of the stored targets ({there}); train at one of them, or "
            "store the targets at it too."
        )
    return known[temperature]


@contextmanager
def whole(head: LMHead, side: str = "student") -> Iterator[dict[str, Any]]:
    """Yield a head as the arguments of a loss, weights gathered that ZeRO-3 or FSDP2 has sharded, once a step."""
    with nullcontext() if head.weight is None else gathered(head.weight, head.bias):
        yield {
            f"{side}_weight": _full(head.weight, head.rows),
            f"{side}_bias": _full(head.bias, head.rows),
            f"{side}_softcap": head.softcap,
            f"{side}_scale": head.scale,
        }


def device_of(weight: torch.Tensor | None, hidden: torch.Tensor) -> torch.device:
    """Return where a loss is computed: beside the head, or beside the logits that need none."""
    return hidden.device if weight is None else weight.device


def _full(parameter: Any, rows: int | None) -> Any:
    """Return the rows of a parameter that logits have, gathered if FSDP2 has sharded it."""
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole if whole is None or rows is None else whole[:rows]
