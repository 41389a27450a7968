"""A few known tokens of a teacher's distributions, from a store or a server: its likeliest ones, or those drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..lm_head import ModelSide
from ..result import DistillationLoss
from ..settings import LossSettings
from ..sparse import SampledTokens, TopKTokens, sparse_loss
from .base import at_temperature, whole


class _SparseSignal:
    """What both kinds have in common."""

    vocabulary: int

    def stored_at(self, temperature: float) -> TopKTokens | SampledTokens:
        """Return what is known at a temperature.

        Raises:
            ValueError: Nothing is.
        """
        raise NotImplementedError

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        """Return the student's loss; see `TeacherSignal.loss`.

        Raises:
            ValueError: A temperature at which nothing is known, or a divergence that needs the whole distribution.
        """
        stored = self.stored_at(settings.temperature)  # not on a GPU yet, so that ids are checked
        with whole(student) as own:
            return sparse_loss(own, labels.to(own.hidden.device), stored, settings, self.vocabulary)


@dataclass
class TopKSignal(_SparseSignal):
    """The k likeliest tokens at N completion positions.

    Attributes:
        token_ids: [N, k] int64, the likeliest first; -1 where fewer are known. A position with none trains on the
            cross-entropy alone.
        log_probs: [N, k], their log-probabilities in nats at T = 1 over `vocabulary`.
        log_normalizers: [N] of log sum_v exp(log p_v / T) by temperature T.
        vocabulary: Rows over which the teacher was normalised.
        covered: Positions of which anything is known; None if it is all of them.
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

    def stored_at(self, temperature: float) -> TopKTokens:
        """Return the tokens with the normaliser of a temperature; ValueError without one."""
        return TopKTokens(self.token_ids, self.log_probs, at_temperature(self.log_normalizers, temperature))


@dataclass
class SampledSignal(_SparseSignal):
    """Drawn tokens at N completion positions.

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

    def stored_at(self, temperature: float) -> SampledTokens:
        """Return the tokens drawn at a temperature; ValueError if there are none."""
        return at_temperature(self.draws, temperature)
