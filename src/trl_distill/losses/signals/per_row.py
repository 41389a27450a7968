"""Tokens of one batch that different teachers speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..result import DistillationLoss
from .base import LossSettings, TeacherSignal, cross_entropy, device_of, whole
from .retained import RetainedSignal

if TYPE_CHECKING:
    from ..lm_head import LMHead


@dataclass
class PerRowSignal:
    """What each of several teachers says of its part of N completion tokens.

    Attributes:
        parts: For each, the places [n] of its tokens among the N and what is said of them: None is nothing, and the
            cross-entropy is all that those tokens are learnt by. Every token is in one part.
    """

    parts: Sequence[tuple[torch.Tensor, TeacherSignal | None]]

    @property
    def tokens(self) -> int:
        """N."""
        return sum(len(index) for index, _ in self.parts)

    @property
    def retained(self) -> torch.Tensor | None:
        """Places [R] of the tokens of rows that are to be retained; None where there are none."""
        places = [index for index, targets in self.parts if isinstance(targets, RetainedSignal)]
        return torch.cat(places) if places else None

    @property
    def silent(self) -> bool:
        """Whether nothing is said of the other tokens."""
        return all(targets is None or isinstance(targets, RetainedSignal) for _, targets in self.parts)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the sum of the parts' losses, tokens in their places; see `TeacherSignal.loss`."""
        with whole(head) as student:  # sharded weights are gathered once, not once a part
            gathered = replace(head, weight=student["student_weight"], bias=student["student_bias"], rows=None)
            device = device_of(gathered.weight, hidden)
            hidden, labels = hidden.to(device), labels.to(device)
            places = [index.to(device) for index, _ in self.parts]
            losses = []
            for index, (_, targets) in zip(places, self.parts, strict=True):
                rows = gathered, hidden[index], labels[index]
                losses.append(cross_entropy(*rows, settings) if targets is None else targets.loss(*rows, settings))
        return _joined(places, losses, len(labels))


def _joined(places: Sequence[torch.Tensor], losses: Sequence[DistillationLoss], tokens: int) -> DistillationLoss:
    """Return one loss of N tokens from those of its parts."""
    ce = losses[0].ce.new_zeros(tokens).index_put((places[0],), losses[0].ce)
    kl = losses[0].kl.new_zeros(tokens).index_put((places[0],), losses[0].kl)
    for index, loss in zip(places[1:], losses[1:], strict=True):
        ce, kl = ce.index_put((index,), loss.ce), kl.index_put((index,), loss.kl)
    sums = (sum((getattr(loss, name) for loss in losses[1:]), getattr(losses[0], name)) for name in SUMS)
    return DistillationLoss(ce, kl, *sums)


SUMS = ("entropy", "top1_agreement", "top1_correct", "loss")
