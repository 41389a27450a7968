"""The loss against stored targets: the teacher's k likeliest tokens, and all others as one bucket, the tail.

Per token, p_T(v) = exp(log p_v / T - c_T) of the stored tokens needs no teacher, c_T = log sum_v exp(log p_v / T)
being stored with them; the tail's mass is what they leave of 1. The divergence is the forward KL over these k + 1
buckets, with the student's tail taken from all of its logits:

    sum_stored p (log p - log q) + p_tail (log p_tail - log q_tail)

It is never negative, at most the full divergence, and equal to it where k is the whole vocabulary. Its gradient in the
student's softened logits is q_v - p_v for a stored token and q_v (1 - p_tail / q_tail) for any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..arguments import LOSS_IMPLEMENTATIONS
from .divergences import ForwardKL
from .fused import Weights, fused_loss
from .outcome import DistillationLoss, check_head, check_settings, check_targets, valid_rows
from .plan import Plan
from .projection import Projection, product_dtype, wide_dtype
from .reference import head_logits, topk_loss_from_logits
from .tile import Buffers, Problem, Tile, power

Tensor = torch.Tensor
MASKED = -2e30  # a logit that adds nothing, below the lowest peak of a tile


def topk_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    targets: Tensor,
    *,
    token_ids: Tensor,
    log_probs: Tensor,
    log_normalizer: Tensor,
    vocabulary: int,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    student_bias: Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    ignore_index: int = -100,
    impl: str = "fused",
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 KL(teacher_T, student_T) + (1 - alpha) CE(student, targets), the teacher's side from a store.

    Only the student is projected, in tiles as by `fused_distillation_loss`. The tail as one bucket is that of
    "Sparse Logit Sampling" (arXiv:2503.16870, the ghost token).

    Args:
        student_hidden: [N, H_s], the student's hidden states.
        student_weight: [V_s, H_s] of its LM head.
        targets: [N] int64 token ids; rows of `ignore_index` are dropped before anything is computed.
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first.
        log_probs: [N, k], the teacher's log-probabilities of them in nats at T = 1 over `vocabulary`.
        log_normalizer: [N], log sum_v exp(log p_v / T) over `vocabulary`, at the temperature given here.
        vocabulary: Rows [0, vocabulary) over which teacher and student are normalised; at most V_s.
        alpha: Weight of the divergence, from 0 to 1.
        temperature: T > 0 of the divergence.
        divergence: "forward_kl"; the others need the teacher's whole distribution.
        student_bias: [V_s] or None.
        student_softcap: Bound of the student's logits, or None.
        student_scale: Factor of the student's logits before the softcap.
        ignore_index: Target that marks a token to leave out.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused" at most, in bytes.

    Returns:
        As `fused_distillation_loss`; `top1_agreement` counts by the first stored token.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    check_settings(alpha, temperature, divergence, 0.5)
    check_topk_divergence(divergence)
    if impl not in LOSS_IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is unknown; choose one of {', '.join(LOSS_IMPLEMENTATIONS)}.")
    check_targets(targets, student_hidden, student_hidden, alpha)
    check_head("student", student_hidden, student_weight, student_bias)
    _check_stored(targets, token_ids, log_probs, log_normalizer, vocabulary, len(student_weight))
    valid = valid_rows(targets, ignore_index, len(student_weight))
    token_ids = token_ids.long()
    if impl == "plain":
        return topk_loss_from_logits(
            head_logits(student_hidden, student_weight, student_bias, softcap=student_softcap, scale=student_scale),
            targets,
            token_ids=token_ids,
            log_probs=log_probs,
            log_normalizer=log_normalizer,
            vocabulary=vocabulary,
            alpha=alpha,
            temperature=temperature,
            ignore_index=ignore_index,
        )
    wide = wide_dtype(student_hidden.dtype)
    student = Projection(
        *(student_hidden, student_weight, student_bias, student_softcap, student_scale, temperature),
        dtype=product_dtype(student_hidden),
        wide=wide,
    )
    stored = Stored(log_probs, token_ids, log_normalizer)
    problem = TopKProblem(student, None, targets, vocabulary, temperature, ForwardKL(), stored)
    return fused_loss(problem, valid, Weights(1.0 - alpha, alpha * temperature**2), tile_bytes)


def check_topk_divergence(kind: str) -> None:
    """Raise ValueError for a divergence that needs more of the teacher than its likeliest tokens."""
    if kind != "forward_kl":
        raise ValueError(
            f"divergence {kind!r} needs the teacher's probability of every token, and a store of the kind topk has its "
            'likeliest alone; choose "forward_kl", or train with the teacher itself.'
        )


def _check_stored(
    targets: Tensor, ids: Tensor, log_probs: Tensor, log_normalizer: Tensor, vocabulary: int, rows: int
) -> None:
    """Raise ValueError unless [N, k] ids and log-probabilities and [N] normalisers describe the N targets."""
    if ids.dim() != 2 or ids.shape != log_probs.shape or len(ids) != len(targets) or log_normalizer.dim() != 1:
        raise ValueError(
            f"token_ids {tuple(ids.shape)} and log_probs {tuple(log_probs.shape)} must be [N, k], and log_normalizer "
            f"{tuple(log_normalizer.shape)} [N], for the N = {len(targets)} targets."
        )
    if len(log_normalizer) != len(ids) or ids.shape[1] == 0:
        raise ValueError(
            f"log_normalizer {tuple(log_normalizer.shape)} does not fit token_ids {tuple(ids.shape)}; pass one for "
            "each token, and at least one id."
        )
    if not 0 < vocabulary <= rows or ids.shape[1] > vocabulary:
        raise ValueError(f"vocabulary {vocabulary} must lie between k = {ids.shape[1]} and {rows}, the student's rows.")
    low, high = (int(i) for i in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise ValueError(
            f"token_ids hold {wrong}, which is no row below vocabulary {vocabulary}; the store is another's."
        )


@dataclass(frozen=True)
class Stored:
    """What a store says of N tokens.

    Attributes:
        log_probs: [N, k] at T = 1.
        token_ids: [N, k].
        log_normalizer: [N] at the training's T.
    """

    log_probs: Tensor
    token_ids: Tensor
    log_normalizer: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three."""
        return self.log_probs, self.token_ids, self.log_normalizer


@dataclass(frozen=True)
class TopKProblem(Problem):
    """A problem whose teacher is a store; its tensors stand where those of a teacher's head would."""

    stored: Stored

    @property
    def shared(self) -> int:
        """Rows over which the divergence is taken."""
        return self.vocabulary

    def tile(self, plan: Plan, buffers: Buffers, index: slice | Tensor) -> Tile:
        """Return a tile of its tokens."""
        return TopKTile(self, plan, buffers, index)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the student's three tensors, the store's, and the targets."""
        return (*self.student.tensors(), *self.stored.tensors(), self.targets)

    def with_tensors(self, tensors: Sequence[Any]) -> TopKProblem:
        """Return the same problem on other tensors."""
        student = self.student.with_tensors(*tensors[:3])
        return replace(self, student=student, stored=Stored(*tensors[3:6]), targets=tensors[6])


class TopKTile(Tile):
    """R tokens of a problem with stored targets.

    The first pass sums up the tail alone, from its own maximum, so that a tail far below the stored tokens keeps its
    gradient; the stored tokens' z, [k, R], are picked out and added at the end.
    """

    def __init__(self, problem: TopKProblem, plan: Plan, buffers: Buffers, index: slice | Tensor) -> None:
        super().__init__(problem, plan, buffers, index)
        self._exponentials = False
        self.ids = problem.stored.token_ids[index].t()
        self._sort_ids()
        wide = problem.student.wide
        log_p = problem.stored.log_probs[index].t().to(wide) / problem.temperature
        p = (log_p - problem.stored.log_normalizer[index].to(wide)).exp()
        mass = p.sum(0)
        whole = len(self.ids) == problem.vocabulary
        # rounded log-probabilities may add up to more than 1; scaled, both sides stay distributions
        self.p = p / (mass if whole else mass.clamp(min=1))
        self.tail_p = torch.zeros_like(mass) if whole else (1 - self.p.sum(0)).clamp(min=0)
        self.top = torch.zeros_like(self.p)
        self.tail_peak, self.tail = self.peak_all, torch.zeros_like(mass)

    def measure(self) -> None:
        """Sum up everything the values need, in one pass over the vocabulary."""
        for block in self.shared:
            self._measure_shared(block)
        self._add_top()
        for block in self.rest:
            self._measure_rest(block)

    def _measure_shared(self, block: slice) -> None:
        """Add the tail's part of a block, and note the stored tokens' z."""
        z, _ = self._project(block)
        u, e, product, _ = self.buffers.scratch(block, len(self.targets))
        self._note_labels(z, block)
        ranks, rows, places = self._stored_in(block)
        kept = z[places, rows]
        self.top[ranks, rows] = kept
        z[places, rows] = MASKED
        peak = torch.maximum(self.tail_peak, z.amax(0))
        fall = self.tail_peak - peak
        self.tail *= fall.exp()
        self._rescale_at_one(fall)
        self.tail_peak = peak
        torch.exp(torch.sub(z, peak, out=u), out=e)
        self.tail += e.sum(0)
        self._add_at_one(u, power(e, u, self.problem.temperature, out=e), product)
        z[places, rows] = kept

    def _add_top(self) -> None:
        """Complete the sums over the shared vocabulary."""
        peak = torch.maximum(self.tail_peak, self.top.amax(0))
        fall, s = self.tail_peak - peak, self.top - peak
        self.total_s = self.tail * fall.exp() + s.exp().sum(0)
        self._rescale_at_one(fall)
        at_one = (s * self.problem.temperature).exp()
        self.total += at_one.sum(0)
        self.moment += (at_one * s).sum(0) * self.problem.temperature
        self.peak_s = self.peak_all = peak
        self.at_top = self.top[0]

    def _divergence(self) -> Tensor:
        """Return the divergence over k + 1 buckets per token."""
        log_total = self.peak_s + self.total_s.log()
        log_q, log_tail = self.top - log_total, self.tail_peak + self.tail.log() - log_total
        stored = (torch.xlogy(self.p, self.p) - self.p * log_q).sum(0)
        tail = torch.xlogy(self.tail_p, self.tail_p) - self.tail_p * log_tail
        return stored + torch.where(self.tail_p > 0, tail, 0.0)

    def _shared_gradient(
        self,
        z_s: Tensor,
        z_t: Tensor,
        weight_ce: Tensor | None,
        weight_kl: Tensor,
        scratch: tuple[Tensor, ...],
        block: slice,
    ) -> Tensor:
        """The gradient of a block but for the targets' entries; takes the place of `z_s`."""
        s, e, _ = scratch
        T = self.problem.temperature
        torch.exp(torch.sub(z_s, self.tail_peak, out=s).clamp_(max=0), out=e)  # stored tokens are set below
        share = torch.where(self.tail_p > 0, self.tail_p / self.tail, 0.0)
        torch.mul(e, weight_kl * ((self.tail_peak - self.peak_s).exp() / self.total_s - share), out=z_s)
        own = self.top - self.peak_s
        patch = weight_kl * (own.exp() / self.total_s - self.p)
        if weight_ce is not None:
            z_s.add_(power(e, s, T, out=s).mul_(self._at_one(weight_ce, self.tail_peak)))
            patch += (own * T).exp() * self._at_one(weight_ce, self.peak_s)
        ranks, rows, places = self._stored_in(block)
        z_s[places, rows] = patch[ranks, rows]
        return z_s

    def _sort_ids(self) -> None:
        """Order the stored tokens by id, so that a block finds its own at once."""
        flat = self.ids.reshape(-1)
        self._order = flat.argsort()
        starts = [block.start for block in self.shared]
        edges = torch.searchsorted(flat[self._order], torch.tensor(starts, device=flat.device)).tolist()
        self._edges = dict(zip(starts, zip(edges, [*edges[1:], len(flat)], strict=True), strict=True))

    def _stored_in(self, block: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return rank, token and place of the stored tokens that lie in a block."""
        first, last = self._edges[block.start]
        picked = self._order[first:last]
        ranks, rows = picked // self.ids.shape[1], picked % self.ids.shape[1]
        return ranks, rows, self.ids[ranks, rows] - block.start
