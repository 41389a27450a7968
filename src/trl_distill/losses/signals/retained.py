"""The signal of the initial student on rows that are to be retained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..lm_head import ModelSide
from ..result import DistillationLoss
from ..settings import LossSettings
from .base import TeacherSignal


@dataclass
class RetainedSignal:
    """A signal that is learned by the divergence alone, whatever alpha is.

    The student is at its optimum as long as it is what it was: the cross-entropy of the completions would pull it
    away from there.

    Attributes:
        signal: Of N completion tokens.
    """

    signal: TeacherSignal

    @property
    def tokens(self) -> int:
        """N."""
        return self.signal.tokens

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the loss with an alpha of 1; see `TeacherSignal.loss`."""
        return self.signal.loss(student, labels, replace(settings, alpha=1.0))
