"""Signals of different teachers, or none, for the rows of one batch; one teacher may be the initial student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..lm_head import ModelSide
from ..result import DistillationLoss
from ..settings import LossSettings
from .base import TeacherSignal, cross_entropy, whole


@dataclass
class RetainedSignal:
    """The signal of the initial student on rows to retain, learned by the divergence alone, whatever alpha is.

    The student starts at the optimum; the cross-entropy of the completions would pull it away.

    Attributes:
        signal: Signal for N completion tokens.
    """

    signal: TeacherSignal

    @property
    def tokens(self) -> int:
        return self.signal.tokens

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the loss with an alpha of 1; see `TeacherSignal.loss`."""
        return self.signal.loss(student, labels, replace(settings, alpha=1.0))


@dataclass
class PerRowSignal:
    """The signals of several teachers, each on its part of N completion tokens.

    Attributes:
        parts: For each, the places [n] of its tokens among the N and its signal; with None, those tokens train on the
            cross-entropy alone. Every token is in one part.
    """

    parts: Sequence[tuple[torch.Tensor, TeacherSignal | None]]

    @property
    def tokens(self) -> int:
        return sum(len(index) for index, _ in self.parts)

    @property
    def retained(self) -> torch.Tensor | None:
        """Places [R] of the tokens of rows that are to be retained; None if there are none."""
        places = [index for index, signal in self.parts if isinstance(signal, RetainedSignal)]
        return torch.cat(places) if places else None

    @property
    def silent(self) -> bool:
        """Whether no teacher gives a signal for the other tokens."""
        return all(signal is None or isinstance(signal, RetainedSignal) for _, signal in self.parts)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the sum of the parts' losses, tokens in their places; see `TeacherSignal.loss`."""
        with whole(student) as own:  # sharded weights are gathered once, not once a part
            labels = labels.to(own.hidden.device)
            places = [index.to(labels.device) for index, _ in self.parts]
            losses = []
            for index, (_, signal) in zip(places, self.parts, strict=True):
                part = own.at(index), labels[index], settings
                losses.append(cross_entropy(*part) if signal is None else signal.loss(*part))
        return _joined(places, losses, len(labels))


def _joined(places: Sequence[torch.Tensor], losses: Sequence[DistillationLoss], tokens: int) -> DistillationLoss:
    """Return one loss of N tokens from those of its parts."""
    ce, kl = losses[0].ce.new_zeros(tokens), losses[0].kl.new_zeros(tokens)
    for index, loss in zip(places, losses, strict=True):
        ce, kl = ce.index_put((index,), loss.ce), kl.index_put((index,), loss.kl)
    sums = (sum(values[1:], values[0]) for values in zip(*(loss[2:] for loss in losses), strict=True))
    return DistillationLoss(ce, kl, *sums)
