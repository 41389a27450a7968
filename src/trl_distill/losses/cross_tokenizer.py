"""The loss against a teacher of another vocabulary, from hidden states and heads, in tiles of positions.

Only the positions at which both models have read the same text are compared, see `cross_divergence_from_logits`; the
cross-entropy is that of all completion tokens. A tile's logits of both models, its values and its gradient are formed
in the forward, and the backward multiplies by the upstream scalar, as in `fused`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .fused.divergences import nan_to_zero
from .fused.products import multiply
from .fused.projection import Projection, projection_of
from .fused.tile_plan import MIB, blocks
from .lm_head import ModelSide
from .reference import Matched, cross_divergence_from_logits
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings

Tensor = torch.Tensor
COPIES = 6  # numbers held at a time for each logit of a tile: itself, its parts, their sorted copy and its places
BLOCK = 8192  # vocabulary rows that are projected at a time, since a part of the weight may be copied for that


class Compared(NamedTuple):
    """Positions that are compared in one way.

    Attributes:
        positions: [n] int64, places among the student's N completion tokens.
        rows: [n] int64, the teacher's rows for them.
        matched: Which tokens are the same there.
    """

    positions: Tensor
    rows: Tensor
    matched: Matched


def add_cross_divergence(
    ce: DistillationLoss,
    *,
    student: ModelSide,
    teacher: ModelSide,
    compared: Sequence[Compared],
    settings: LossSettings,
) -> DistillationLoss:
    """Return sum alpha T^2 kl + (1 - alpha) ce over N tokens, kl being 0 at those that are not compared.

    Args:
        ce: The cross-entropy's share: a `DistillationLoss` at alpha 0.
        student: Its N hidden states and head.
        teacher: The teacher's, at the positions that are compared.
        compared: The positions, each at most once.
        settings: Loss settings.

    Returns:
        As `fused_distillation_loss`, `loss` alone being differentiable; `top1_agreement` counts the positions at which
        both models' likeliest tokens are the same.

    Raises:
        ValueError: Sides of different length.
    """
    alpha = settings.alpha
    kl, agreement, total = torch.zeros_like(ce.ce), torch.zeros_like(ce.top1_agreement), ce.loss.new_zeros(())
    for part in compared:
        values, agree, summed = cross_divergence(
            student=student.at(part.positions), teacher=teacher.at(part.rows), matched=part.matched, settings=settings
        )
        kl[part.positions] = values.detach().to(kl.dtype)
        agreement, total = agreement + agree, total + summed
    own = ce.loss if alpha < 1 else ce.loss.masked_fill(ce.loss.isinf(), 0.0)  # a ruled-out label has no weight then
    loss = alpha * settings.temperature**2 * total + (1 - alpha) * own
    return ce._replace(ce=ce.ce.detach(), kl=kl, top1_agreement=agreement, loss=loss)


def cross_divergence(
    *, student: ModelSide, teacher: ModelSide, matched: Matched, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the divergence [n] of every position, how often both models' likeliest tokens agree, and the sum.

    The sum is differentiable in the student's hidden states, weight and bias; alpha is not used.

    Raises:
        ValueError: Sides of different length.
    """
    if len(student.hidden) != len(teacher.hidden):
        raise ValueError(
            f"the student has {len(student.hidden)} positions and the teacher {len(teacher.hidden)}; pass those at "
            "which both have read the same text."
        )
    if settings.impl == "plain":
        logits = student.logits(), teacher.logits().detach()
        values = cross_divergence_from_logits(
            *logits,
            matched,
            temperature=settings.temperature,
            divergence=settings.divergence,
            jsd_beta=settings.jsd_beta,
        )
        return values.detach(), _agreeing(logits[0].t(), logits[1].t(), matched).sum(), values.sum()
    wide = wide_dtype(student.hidden.dtype)
    sides = (projection_of(side, settings, wide) for side in (student, teacher))
    total, values, agree = _CrossDivergence.apply(*sides, matched, settings, *student.tensors)
    return values, agree, total


class _CrossDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Projection,
        teacher: Projection,
        matched: Matched,
        settings: LossSettings,
        hidden: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        own = (hidden, weight, bias)
        wide = student.wide
        grads = [
            torch.zeros_like(t, dtype=wide) if t is not None and wanted else None
            for t, wanted in zip(own, ctx.needs_input_grad[4:], strict=True)
        ]
        values = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        agree = values.new_zeros(())
        size = _tile_rows(student, teacher, settings.tile_bytes)
        with torch.autocast(hidden.device.type, enabled=False):
            for index in blocks(0, len(hidden), size):
                tile = _Tile(student, teacher, matched, settings, index)
                values[index] = tile.values
                agree = agree + tile.agreeing
                if any(g is not None for g in grads):
                    tile.add_gradients(student, grads, index)
        ctx.grads, ctx.dtypes = grads, [None if t is None else t.dtype for t in own]
        ctx.mark_non_differentiable(values, agree)
        return values.sum(), values, agree

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _1: Any, _2: Any) -> tuple[Tensor | None, ...]:
        own = (None if g is None else (g * total).to(dtype) for g, dtype in zip(ctx.grads, ctx.dtypes, strict=True))
        return (*[None] * 4, *own)


class _Tile:
    """R positions: their divergence, and its gradient in the student's softened logits [V_s, R]."""

    def __init__(
        self, student: Projection, teacher: Projection, matched: Matched, settings: LossSettings, index: slice
    ) -> None:
        self.matched, self.settings = matched, settings
        self.rules_out = student.rules_out or teacher.rules_out
        z_t, self.z = (_logits(side, index) for side in (teacher, student))
        self.agreeing = _agreeing(self.z, z_t, matched).sum()
        self.gradient = torch.zeros_like(self.z)
        log_q, log_qm, rest_q = _matched_and_rest(self.z, matched.student, matched.student_rest)
        log_p, log_pm, rest_p = _matched_and_rest(z_t, matched.teacher, matched.teacher_rest)
        del z_t
        self.values = self._unmatched(rest_q.exp_(), rest_p.exp_())
        if len(matched.student):
            q_matched = log_q.exp()  # of all tokens
            self.gradient[matched.student] = q_matched.mul_(-self._pull)
            self.values += self._matched(log_q.sub_(log_qm), log_p.sub_(log_pm), log_pm.exp())

    def _matched(self, log_q: Tensor, log_p: Tensor, mass: Tensor) -> Tensor:
        """Return mass D(p, q) [R] of two distributions over the matched tokens, [M, R], and add its gradient."""
        p, q = log_p.exp(), log_q.exp()
        ids, kind, beta = self.matched.student, self.settings.divergence, self.settings.jsd_beta
        if kind == "forward_kl":
            value = nan_to_zero(p * (log_p - log_q), self.rules_out).sum(0)
            slope = q.sub_(p)
        elif kind == "reverse_kl":
            gap = log_q - log_p
            value = nan_to_zero(q * gap, self.rules_out).sum(0)
            slope = nan_to_zero(q.mul_(gap.sub_(value)), self.rules_out)
        else:
            log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
            gap = log_q - log_m
            to_mixture = nan_to_zero(q * gap, self.rules_out).sum(0)
            value = beta * nan_to_zero(p * (log_p - log_m), self.rules_out).sum(0) + (1 - beta) * to_mixture
            slope = nan_to_zero(q.mul_(gap.sub_(to_mixture)), self.rules_out).mul_(1 - beta)
        self.gradient.index_add_(0, ids, slope.mul_(mass))
        return mass * value

    def _unmatched(self, q: Tensor, p: Tensor) -> Tensor:
        """Return the distance [R] of sorted probabilities, [U_s, R] and [U_t, R], and set its gradient.

        Moving one logit moves all of q: d/dz_v = q_v (sign_v - sum_u sign_u q_u), with the sign 0 for matched tokens.
        """
        (q_sorted, places), p_sorted = q.sort(0, descending=True), p.sort(0, descending=True).values
        both = min(len(q), len(p))
        gap = q_sorted  # beyond the teacher's tokens it is q itself
        gap[:both] -= p_sorted[:both]
        value = gap.abs().sum(0) + p_sorted[both:].sum(0)
        sign = torch.empty_like(q).scatter_(0, places, gap.sign())
        self._pull = (sign * q).sum(0)
        self.gradient[self.matched.student_rest] = sign.sub_(self._pull).mul_(q)
        return value

    def add_gradients(self, student: Projection, grads: Sequence[Tensor | None], index: slice) -> None:
        """Add the gradients in hidden states [n, H], weight [V_s, H] and bias [V_s] to those of the other tiles."""
        slope = student.slope(self.z, self.z)
        grad = self.gradient.mul_(student.head.scale if slope is None else slope).div_(student.temperature)
        hidden, weight, bias = grads
        rows = student.rows(index)
        for block in blocks(0, student.vocabulary_rows, BLOCK):
            if hidden is not None:
                student.add_hidden_gradient(hidden[index], grad[block], block)
            if weight is not None:
                multiply(grad[block], rows, weight[block], add=True)
        if bias is not None:
            bias += grad.sum(1)


def _logits(side: Projection, index: slice) -> Tensor:
    """Return softened logits [V, R] of a tile."""
    write = side.tile_logits(index)
    z = torch.empty(side.vocabulary_rows, index.stop - index.start, dtype=side.wide, device=side.hidden.device)
    for block in blocks(0, side.vocabulary_rows, BLOCK):
        write(block, z[block])
    return z


def _matched_and_rest(z: Tensor, matched: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities over both kinds of tokens: of the matched, of all matched together [R], of the rest."""
    parts = z[matched], z[rest]
    sums = [part.logsumexp(0) if len(part) else z.new_full(z.shape[1:], -torch.inf) for part in parts]
    all_together = torch.logaddexp(*sums)
    return parts[0].sub_(all_together), sums[0] - all_together, parts[1].sub_(all_together)


def _agreeing(student: Tensor, teacher: Tensor, matched: Matched) -> Tensor:
    """Return whether [R], as a number, the likeliest tokens of both logits [V, R] are matched with each other."""
    if not len(matched.student):
        return student.new_zeros(student.shape[1])
    top = []
    agree = torch.ones(student.shape[1], dtype=torch.bool, device=student.device)
    for z, ids, rest in (
        (student, matched.student, matched.student_rest), (teacher, matched.teacher, matched.teacher_rest)
    ):  # fmt: skip
        best, place = z[ids].max(0)
        top.append(place)
        if len(rest):
            agree &= best >= z[rest].amax(0)
    return (agree & (top[0] == top[1])).to(student.dtype)


def _tile_rows(student: Projection, teacher: Projection, tile_bytes: int | None) -> int:
    """Return how many positions a tile has, so that its working memory stays within the bound (as `plan_tiles`)."""
    if tile_bytes is None:
        tile_bytes = (56 if student.hidden.device.type == "cpu" else 2048) * MIB
    return max(1, tile_bytes // (COPIES * student.wide.itemsize * (student.vocabulary_rows + teacher.vocabulary_rows)))
