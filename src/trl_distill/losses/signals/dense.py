"""The whole distribution: a teacher's hidden states and its LM head, or several teachers' mixed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..dense import dense_loss
from ..lm_head import ModelSide
from ..mixture import mixture_loss
from ..result import DistillationLoss
from ..settings import LossSettings
from .base import whole


@dataclass(frozen=True)
class DenseSignal(ModelSide):
    """A teacher's hidden states at N completion positions, without gradient, and its head.

    Attributes:
        vocabulary: Rows shared with the student; None is the smaller of the two vocabularies.
    """

    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.hidden)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        with whole(student) as own, whole(self, own.hidden.device) as teacher:
            return dense_loss(own, teacher, labels.to(own.hidden.device), settings, vocabulary=self.vocabulary)


@dataclass
class MixtureSignal:
    """M teachers at N completion positions.

    Attributes:
        parts: Each teacher's hidden states and head, over N positions each; zeros at those of rows without it.
        weights: [N, M], 0 at positions of rows without a teacher.
        vocabulary: Rows shared by all; None is the smallest of them.
    """

    parts: Sequence[ModelSide]
    weights: torch.Tensor
    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.weights)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        with whole(student) as own, ExitStack() as stack:
            device = own.hidden.device
            teachers = [stack.enter_context(whole(part, device)) for part in self.parts]
            weights, labels = self.weights.to(device), labels.to(device)
            return mixture_loss(own, teachers, weights, labels, settings, vocabulary=self.vocabulary)
