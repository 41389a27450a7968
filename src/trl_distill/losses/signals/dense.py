"""The whole distribution: a teacher's hidden states and its LM head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..dense import dense_loss
from ..lm_head import ModelSide
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
        """N."""
        return len(self.hidden)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the student's loss; see `TeacherSignal.loss`."""
        with whole(student) as own, whole(self, own.hidden.device) as teacher:
            return dense_loss(own, teacher, labels.to(own.hidden.device), settings, vocabulary=self.vocabulary)
