"""The protocol of teacher signals, and how sharded weights are gathered for the losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch.distributed.tensor import DTensor

from ..._trl import gathered
from ..dense import dense_loss
from ..lm_head import ModelSide
from ..result import DistillationLoss
from ..settings import LossSettings

Known = TypeVar("Known")


class TeacherSignal(Protocol):
    """A teacher's output for N completion tokens."""

    @property
    def tokens(self) -> int:
        """N, the completion tokens."""
        ...

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the student's loss against the signal, with alpha above 0.

        Args:
            student: The hidden states that predict the N completion tokens, and its head.
            labels: [N] int64, the completion tokens.
            settings: Loss settings.

        Raises:
            ValueError: Settings that the signal does not allow.
        """
        ...


def cross_entropy(student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
    """Return the loss of a batch without a teacher's signal: the cross-entropy alone."""
    with whole(student) as own:
        return dense_loss(own, None, labels.to(own.hidden.device), replace(settings, alpha=0.0))


def at_temperature(known: Mapping[float, Known], temperature: float) -> Known:
    """Return the entry for a temperature.

    Raises:
        ValueError: There is none; the message lists the available temperatures.
    """
    if temperature not in known:
        there = ", ".join(f"{t:g}" for t in sorted(known))
        raise ValueError(
            f"temperature {temperature:g} is not among those of the stored targets ({there}); train at one of them, or "
            "store the targets at it too."
        )
    return known[temperature]


@contextmanager
def whole(side: ModelSide, device: torch.device | None = None) -> Iterator[ModelSide]:
    """Yield a side on one device, weights gathered that ZeRO-3 or FSDP2 has sharded, once a step.

    Args:
        side: Hidden states and head; rows of the head that no logit has are left out.
        device: The device; None is that of the head, or of the logits that need none.
    """
    head = side.head
    with nullcontext() if head.weight is None else gathered(head.weight, head.bias):
        weight, bias = _full(head.weight, head.rows), _full(head.bias, head.rows)
        if device is None:
            device = (side.hidden if weight is None else weight).device
        weight, bias = (None if parameter is None else parameter.to(device) for parameter in (weight, bias))
        yield ModelSide(side.hidden.to(device), replace(head, weight=weight, bias=bias, rows=None))


def _full(parameter: torch.Tensor | None, rows: int | None) -> torch.Tensor | None:
    """Return the rows of a parameter that logits have, gathered if FSDP2 has sharded it."""
    gathered_parameter = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return gathered_parameter if gathered_parameter is None or rows is None else gathered_parameter[:rows]
