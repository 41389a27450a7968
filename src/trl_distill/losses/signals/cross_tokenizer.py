"""The whole distribution of a teacher with another vocabulary, at the positions where both have read the same text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...config.devices import on_device
from ..cross_tokenizer import Compared, Head, Settings, add_cross_divergence
from ..dense import fused_distillation_loss
from ..result import DistillationLoss
from .base import LossSettings, device_of, whole

if TYPE_CHECKING:
    from ..cross_tokenizer_reference import Matched
    from ..lm_head import LMHead


@dataclass
class CrossTokenizerSignal:
    """A teacher's hidden states at n of N completion positions, and its head.

    Attributes:
        hidden: [n, H_t], without gradient.
        head: The teacher's LM head.
        kinds: [N] int64 on the host, how the tokens match at each of the student's positions, 0 where it is not
            compared; the n others are those of `hidden`, in order.
        matched: Which tokens are the same, by kind.
    """

    hidden: torch.Tensor
    head: LMHead
    kinds: np.ndarray
    matched: Mapping[int, Matched]

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.kinds)

    @property
    def covered(self) -> int:
        """The positions that are compared, n."""
        return len(self.hidden)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s]; see `TeacherSignal.loss`."""
        learnt = settings.alpha < 1 or self.covered == 0  # where nothing is compared the loss has to depend on it
        how = Settings(settings.temperature, settings.divergence, settings.jsd_beta, settings.impl)
        with whole(head) as student, whole(self.head, "teacher") as teacher:
            device = device_of(student["student_weight"], hidden)
            with torch.set_grad_enabled(torch.is_grad_enabled() and learnt):
                ce = fused_distillation_loss(
                    hidden.to(device),
                    targets=labels.to(device),
                    teacher_hidden=None,
                    teacher_weight=None,
                    alpha=0.0,
                    temperature=settings.temperature,
                    impl=settings.impl,
                    **student,
                )
            return add_cross_divergence(
                ce,
                student=Head(hidden.to(device), *student.values()),
                teacher=Head(self.hidden.to(device), *(_on(device, value) for value in teacher.values())),
                compared=self._compared(device),
                alpha=settings.alpha,
                how=how,
            )

    def _compared(self, device: torch.device) -> list[Compared]:
        """Return the positions of each kind."""
        positions = self.kinds.nonzero()[0]
        if len(positions) != len(self.hidden):
            raise RuntimeError(
                f"the teacher scored {len(self.hidden)} positions and the student has {len(positions)} to compare; "
                "both sides of a batch must mark the same spans."
            )
        parts = []
        for kind, matched in self.matched.items():
            rows = (self.kinds[positions] == kind).nonzero()[0]
            if len(rows):
                places, among = (on_device(index, device) for index in (positions[rows], rows))
                parts.append(Compared(places, among, matched.to(device)))
        return parts


def _on(device: torch.device, value: Any) -> Any:
    """Return a head's part on a device, where it is a tensor."""
    return value.to(device) if isinstance(value, torch.Tensor) else value
