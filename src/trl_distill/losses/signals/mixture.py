"""Several teachers' whole distributions, mixed token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..mixture import TeacherSide, mixture_distillation_loss
from ..result import DistillationLoss
from .base import LossSettings, device_of, whole
from .dense import DenseSignal

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


@dataclass
class MixtureSignal:
    """M teachers at N completion positions.

    Attributes:
        parts: Each teacher's hidden states and head, over N positions each; zeros where it does not take the row.
        weights: [N, M], 0 where a teacher does not take the row.
        vocabulary: Rows shared by all; None is the smallest of them.
    """

    parts: Sequence[DenseSignal]
    weights: torch.Tensor
    vocabulary: int | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.weights)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s]; see `TeacherSignal.loss`."""
        with whole(head) as student, ExitStack() as stack:
            device = device_of(student["student_weight"], hidden)
            sides = []
            for part in self.parts:
                theirs = stack.enter_context(whole(part.head, "teacher"))
                weight, bias = theirs["teacher_weight"], theirs["teacher_bias"]
                sides.append(
                    TeacherSide(
                        part.hidden.to(device),
                        None if weight is None else weight.to(device),
                        None if bias is None else bias.to(device),
                        theirs["teacher_softcap"],
                        theirs["teacher_scale"],
                    )
                )
            return mixture_distillation_loss(
                hidden.to(device),
                targets=labels.to(device),
                teachers=sides,
                weights=self.weights.to(device),
                vocabulary=self.vocabulary,
                alpha=settings.alpha,
                temperature=settings.temperature,
                divergence=settings.divergence,
                jsd_beta=settings.jsd_beta,
                impl=settings.impl,
                **student,
            )
