"""The whole distribution: a teacher's hidden states and its LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dense import fused_distillation_loss
from ..result import DistillationLoss
from .base import LossSettings, device_of, whole

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


@dataclass
class DenseSignal:
    """A teacher's hidden states at N completion positions, and its head.

    Attributes:
        hidden: [N, H_t], without gradient.
        head: The teacher's LM head.
        vocabulary: Rows shared with the student; None is the smaller of the two.
    """

    hidden: torch.Tensor
    head: LMHead
    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.hidden)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s]; see `TeacherSignal.loss`."""
        with whole(head) as student, whole(self.head, "teacher") as teacher:
            device = device_of(student["student_weight"], hidden)
            for name in ("teacher_weight", "teacher_bias"):
                teacher[name] = teacher[name] if teacher[name] is None else teacher[name].to(device)
            return fused_distillation_loss(
                hidden.to(device),
                teacher_hidden=self.hidden.to(device),
                targets=labels.to(device),
                vocabulary=self.vocabulary,
                alpha=settings.alpha,
                temperature=settings.temperature,
                divergence=settings.divergence,
                jsd_beta=settings.jsd_beta,
                impl=settings.impl,
                **student,
                **teacher,
            )
