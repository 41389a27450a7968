"""Tokens that were drawn from a teacher's distributions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..result import DistillationLoss
from ..sampled import sampled_distillation_loss
from .base import LossSettings, at_temperature, device_of, whole

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


class SampledTokens(NamedTuple):
    """What was drawn at N completion positions at one temperature.

    Attributes:
        token_ids: [N, k] int64, the teacher's likeliest first, drawn or not; -1 where there is none.
        shares: [N, k], each token's share of the draws.
        negentropy: [N], the teacher's sum_v p log p in nats.
    """

    token_ids: torch.Tensor
    shares: torch.Tensor
    negentropy: torch.Tensor


@dataclass
class SampledSignal:
    """Drawn tokens at N completion positions, of a teacher that is not there.

    Attributes:
        draws: By temperature.
        vocabulary: Rows over which the teacher was normalised.
    """

    draws: Mapping[float, SampledTokens]
    vocabulary: int

    @property
    def tokens(self) -> int:
        """N."""
        return len(next(iter(self.draws.values())).token_ids)

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss of the student's hidden states [N, H_s]; see `TeacherSignal.loss`.

        Raises:
            ValueError: A temperature at which nothing was drawn, or a divergence that needs the whole distribution.
        """
        drawn = at_temperature(self.draws, settings.temperature)
        with whole(head) as student:
            device = device_of(student["student_weight"], hidden)
            return sampled_distillation_loss(
                hidden.to(device),
                targets=labels.to(device),
                token_ids=drawn.token_ids,  # where they were read, so that they are checked there
                probs=drawn.shares,
                negentropy=drawn.negentropy,
                vocabulary=self.vocabulary,
                alpha=settings.alpha,
                temperature=settings.temperature,
                divergence=settings.divergence,
                impl=settings.impl,
                **student,
            )
