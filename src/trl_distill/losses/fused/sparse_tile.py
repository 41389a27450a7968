"""The loss against a distribution of which a few tokens are known: the student alone is projected, in tiles.

A token's k known tokens v have probabilities p_v at T; what they leave of 1 is the tail, one bucket, or there is none.

    sum_known p (log p - log q) + p_tail (log p_tail - log q_tail)

with the student's tail from all of its logits. The gradient in the student's softened logits is q_v - p_v for a known
token and q_v (1 - p_tail / q_tail) for any other; without a tail it is q_v for those. A token of which nothing is known
is all tail: its divergence and gradient are 0.
"""

from __future__ import annotations

import torch

from .divergences import nan_to_zero
from .problem import Problem
from .tile import Buffers, Tile, by_block
from .tile_plan import Plan

Tensor = torch.Tensor
MASKED = -2e30  # a logit that adds nothing, below the lowest peak of a tile


class SparseTile(Tile):
    """R tokens of a problem with known tokens.

    The first pass sums up the tail alone, from its own maximum, so that a tail far below the known tokens keeps its
    gradient; the known tokens' z, [k, R], are picked out and added at the end.
    """

    def __init__(self, problem: Problem, plan: Plan, buffers: Buffers, index: slice | Tensor) -> None:
        super().__init__(problem, plan, buffers, index)
        known, wide = problem.known, problem.student.wide
        assert known is not None
        self.ids = known.token_ids[index].t()
        self._in_shared = by_block(self.ids.reshape(-1), self.shared)  # ids of no token lie before all
        self.p = known.probs[index].t().to(wide)
        self.tail_p = None if known.tail is None else known.tail[index].to(wide)
        self.negentropy = None if known.negentropy is None else known.negentropy[index].to(wide)
        self.top = torch.full_like(self.p, MASKED)
        self.tail_peak, self.tail = self.peak_all, torch.zeros_like(self.peak_all)

    def _measure_shared(self, block: slice) -> None:
        """Add the tail's part of a block, and note the known tokens' z."""
        z, _ = self._project(block)
        u, e, product, _ = self.buffers.scratch(block, len(self.labels))
        self._note_labels(z, block)
        ranks, rows, places = self._known_in(block)
        kept = z[places, rows]
        self.top[ranks, rows] = kept
        z[places, rows] = MASKED
        peak = torch.maximum(self.tail_peak, z.amax(0))
        fall = self.tail_peak - peak
        self.tail *= fall.exp()
        self._rescale_at_one(fall)
        self.tail_peak = peak
        torch.sub(z, peak, out=u)
        exponentials = torch.exp(u, out=z if self._exponentials else e)
        self.tail += exponentials.sum(0)
        at_one = self.student.power(exponentials, u, out=e) if self.student.is_softened else exponentials
        self._add_at_one(u, at_one, product)
        if self._exponentials:
            self._peaks[block.start] = peak, peak
        else:
            z[places, rows] = kept

    def _complete_shared(self) -> None:
        """Add the known tokens to the sums over the shared vocabulary."""
        peak = torch.maximum(self.tail_peak, self.top.amax(0))
        fall, s = self.tail_peak - peak, self.top - peak
        self.total_s = self.tail * fall.exp() + s.exp().sum(0)
        self._rescale_at_one(fall)
        at_one = self.student.at_one(s).exp()
        self.total += at_one.sum(0)
        self.moment += self.student.at_one(nan_to_zero(at_one * s, self.rules_out).sum(0))
        self.peak_s = self.peak_all = peak
        self.at_top = self.top[0]

    def _divergence(self) -> Tensor:
        """Return the divergence over the k + 1 buckets per token."""
        log_total = self.peak_s + self.total_s.log()
        own = torch.xlogy(self.p, self.p).sum(0) if self.negentropy is None else self.negentropy
        out = own - nan_to_zero(self.p * (self.top - log_total), self.rules_out).sum(0)
        if self.tail_p is None:
            return out
        log_tail = self.tail_peak + self.tail.log() - log_total
        tail = torch.xlogy(self.tail_p, self.tail_p) - self.tail_p * log_tail
        return out + torch.where(self.tail_p > 0, tail, 0.0)

    def _shared_gradient(
        self, z: tuple[Tensor, Tensor], weight_ce: Tensor | None, weight_kl: Tensor, block: slice
    ) -> Tensor:
        """The gradient of a block but for the labels' entries; takes the place of the student's z."""
        z_s, _ = z
        s, e, _, _ = self.buffers.scratch(block, len(self.labels))
        torch.exp(torch.sub(z_s, self.tail_peak, out=s).clamp_(max=0), out=e)  # known tokens are set below
        torch.mul(e, weight_kl * self._tail_factor(self.tail_peak), out=z_s)
        if weight_ce is not None:
            at_one = self.student.power(e, s, out=s)
            z_s.add_(at_one.mul_(self._at_one(weight_ce, self.tail_peak)))
        return self._put_known(z_s, weight_ce, weight_kl, block)

    def _gradient_of_exponentials(
        self, kept: tuple[Tensor, Tensor], weight_ce: Tensor | None, weight_kl: Tensor, block: slice
    ) -> Tensor:
        """The same from kept exponentials."""
        exp_s, _ = kept
        peak, _ = self._peaks[block.start]
        factor = weight_kl * self._tail_factor(peak)
        if weight_ce is None:
            exp_s.mul_(factor)
        elif self.student.is_softened:
            place = self.buffers.scratch(block, len(self.labels))[0]
            at_one = self.student.power(exp_s, None, out=place).mul_(self._at_one(weight_ce, peak))
            torch.addcmul(at_one, exp_s, factor, out=exp_s)
        else:
            exp_s.mul_(factor + self._at_one(weight_ce, peak))
        return self._put_known(exp_s, weight_ce, weight_kl, block)

    def _tail_factor(self, peak: Tensor) -> Tensor:
        """Return the factor that turns exp(z - peak) of a tail token into its gradient, [R]."""
        factor = (peak - self.peak_s).exp() / self.total_s
        if self.tail_p is None:
            return factor
        learned = (self.tail_p > 0) & (self.tail > 0)  # a tail that is ruled out has no gradient
        return factor - torch.where(learned, self.tail_p / self.tail * (peak - self.tail_peak).exp(), 0.0)

    def _put_known(self, gradient: Tensor, weight_ce: Tensor | None, weight_kl: Tensor, block: slice) -> Tensor:
        """Set the known tokens' entries of a block's gradient."""
        own = self.top - self.peak_s
        patch = weight_kl * (own.exp() / self.total_s - self.p)
        if weight_ce is not None:
            patch += self.student.at_one(own).exp() * self._at_one(weight_ce, self.peak_s)
        ranks, rows, places = self._known_in(block)
        gradient[places, rows] = patch[ranks, rows]
        return gradient

    def _known_in(self, block: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return rank, token and place of the known tokens that lie in a block."""
        picked = self._in_shared[block.start]
        ranks, rows = picked // self.ids.shape[1], picked % self.ids.shape[1]
        return ranks, rows, self.ids[ranks, rows] - block.start
