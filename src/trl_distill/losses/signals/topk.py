"""A teacher's likeliest tokens, the rest of its distribution as one bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..result import DistillationLoss
from ..sparse import topk_distillation_loss
from .base import LossSettings, at_temperature, device_of, whole

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


@dataclass
class TopKSignal:
    """The k likeliest tokens at N completion positions, of a teacher that is not there.

    Attributes:
        token_ids: [N, k] int64, the likeliest first; -1 where fewer are known. A position with none trains on the
            cross-entropy alone.
        log_probs: [N, k], their log-probabilities in nats at T = 1 over `vocabulary`.
        log_normalizers: [N] of log sum_v exp(log p_v / T) by temperature T.
        vocabulary: Rows over which the teacher was normalised.
        covered: Positions of which anything is known; None where they are all by nature.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor
    log_normalizers: Mapping[float, torch.Tensor]
    vocabulary: int
    covered: int | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.token_ids)

    @property
    def known(self) -> torch.Tensor:
        """[N] bool: the positions of which anything is known."""
        return (self.token_ids >= 0).any(1)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s]; see `TeacherSignal.loss`.

        Raises:
            ValueError: A temperature that has no log-normalisers, or a divergence that needs the whole distribution.
        """
        normalizer = at_temperature(self.log_normalizers, settings.temperature)
        with whole(head) as student:
            device = device_of(student["student_weight"], hidden)
            return topk_distillation_loss(
                hidden.to(device),
                targets=labels.to(device),
                token_ids=self.token_ids,  # where they were read, so that they are checked there
                log_probs=self.log_probs,
                log_normalizer=normalizer,
                vocabulary=self.vocabulary,
                alpha=settings.alpha,
                temperature=settings.temperature,
                divergence=settings.divergence,
                impl=settings.impl,
                **student,
            )
