"""Sparse teacher distributions from a store or a server: the top-k tokens, or sampled ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..lm_head import ModelSide
from ..result import DistillationLoss
from ..settings import LossSettings
from ..sparse import SampledTokens, TopKTokens, sparse_loss
from .base import at_temperature, whole


@dataclass
class TopKSignal:
    """The k likeliest tokens at N completion positions.

    Attributes:
        token_ids: [N, k] int64, the likeliest first; -1 if fewer are known. A position with none trains on the
            cross-entropy alone.
        log_probs: [N, k], their log-probabilities in nats at T = 1 over `vocabulary`.
        log_normalizers: [N] of log sum_v exp(log p_v / T) by temperature T.
        vocabulary: Rows over which the teacher was normalised.
        covered: Number of positions with any known token; None if it is all of them.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor
    log_normalizers: Mapping[float, torch.Tensor]
    vocabulary: int
    covered: int | None = None

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def known(self) -> torch.Tensor:
        """[N] bool: the positions with any known token."""
        return (self.token_ids >= 0).any(1)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the student's loss; see `TeacherSignal.loss`.

        Raises:
            ValueError: A temperature without log-normalisers, or a divergence that needs the whole distribution.
        """
        normalizer = at_temperature(self.log_normalizers, settings.temperature)
        stored = TopKTokens(self.token_ids, self.log_probs, normalizer)
        with whole(student) as own:
            return sparse_loss(own, labels.to(own.hidden.device), stored, settings, self.vocabulary)


@dataclass
class SampledSignal:
    """Sampled tokens at N completion positions.

    Attributes:
        samples: Sampled tokens by temperature.
        vocabulary: Rows over which the teacher was normalised.
    """

    samples: Mapping[float, SampledTokens]
    vocabulary: int

    @property
    def tokens(self) -> int:
        return len(next(iter(self.samples.values())).token_ids)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the student's loss; see `TeacherSignal.loss`.

        Raises:
            ValueError: A temperature at which nothing was sampled, or a divergence that needs the whole distribution.
        """
        known = at_temperature(self.samples, settings.temperature)
        with whole(student) as own:
            return sparse_loss(own, labels.to(own.hidden.device), known, settings, self.vocabulary)
