"""The passes over one tile of tokens: sums for the values, then the gradient, a block of the vocabulary at a time.

The elementwise steps of a block run in place on a few small buffers, so they stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from .divergences import JensenShannon, divergence_of, nan_to_zero
from .problem import Problem
from .products import multiply
from .tile_plan import Plan, blocks

Tensor = torch.Tensor


@dataclass(frozen=True)
class Weights:
    """sum(ce * cross-entropy + kl * divergence): one number for all tokens, or one for each, [N].

    Attributes:
        ce: Weight of the cross-entropy.
        kl: Weight of the divergence.
        typical_ce: The order of `ce`, if that is a tensor and `kl` is none, so that a GPU's is not read.
    """

    ce: float | Tensor
    kl: float | Tensor
    typical_ce: float | None = None

    @classmethod
    def of_loss(cls, problem: Problem) -> Weights:
        """Return those of a loss: 1 - alpha, or 1 for tokens of which nothing is known, and alpha T^2."""
        settings, known = problem.settings, problem.known
        typical = 1.0 - settings.alpha
        ce: float | Tensor = typical
        # a GPU is not waited for
        if known is not None and (known.token_ids.device.type != "cpu" or known.unknown.any()):
            ce = torch.full_like(known.probs[:, 0], typical).masked_fill(known.unknown, 1.0)
        return cls(ce, problem.student.divergence_weight(settings.alpha), typical)

    def of(self, index: slice | Tensor, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return both for a tile of tokens, [R]; None if the weight is 0 for all."""
        ce, kl = (
            None
            if isinstance(w, float) and w == 0
            else torch.as_tensor(w, dtype=like.dtype, device=like.device).expand_as(like)[index]
            for w in (self.ce, self.kl)
        )
        return ce, kl


class Gradients(NamedTuple):
    """The gradients that tiles accumulate into; None if not wanted.

    Attributes:
        hidden: [N, H_s].
        weight: [V_s, H_s], without content before the first tile.
        bias: [V_s], zeros before the first tile.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Buffers:
    """Memory that all tiles of a call share: both models' logits, and four blocks of scratch."""

    def __init__(self, plan: Plan, problem: Problem) -> None:
        empty = partial(torch.empty, dtype=problem.student.wide, device=problem.labels.device)
        wide = problem.student.vocabulary_rows if plan.keep else plan.block
        shared = problem.vocabulary if plan.keep else min(plan.block, problem.vocabulary)
        self._keep, self._shared = plan.keep, problem.vocabulary
        self._student = empty(wide * plan.rows)
        self._teacher = empty(shared * plan.rows if problem.teacher is not None else 0)
        self._scratch = [empty(plan.block * plan.rows) for _ in range(4)]

    def logits(self, block: slice, rows: int) -> tuple[Tensor, Tensor]:
        """Return the places [B, R] of both models' logits of a block; the teacher's is empty if it is not shared."""
        shared = block.stop <= self._shared
        start, stop = (block.start, block.stop) if self._keep else (0, block.stop - block.start)
        theirs = self._teacher[start * rows : stop * rows] if shared else self._teacher[:0]
        return self._student[start * rows : stop * rows].view(-1, rows), theirs.view(-1, rows)

    def scratch(self, block: slice, rows: int) -> list[Tensor]:
        size = block.stop - block.start
        return [buffer[: size * rows].view(size, rows) for buffer in self._scratch]


class Tile:
    """R tokens of a problem. `measure()` first, then `add_gradients()` if they are wanted.

    z are logits divided by T. The sums at T = 1 use them too, see `Projection.power`.
    """

    def __init__(self, problem: Problem, plan: Plan, buffers: Buffers, index: slice | Tensor) -> None:
        self.problem, self.buffers, self.index, self.keep = problem, buffers, index, plan.keep
        self.rules_out = problem.rules_out
        self.student = problem.student
        self.student_rows = self.student.rows(index)
        self.teacher_logits = None if problem.teacher is None else problem.teacher.tile_logits(index)
        self.divergence = divergence_of(problem.settings)
        self.labels = problem.labels[index]
        self.shared = blocks(0, problem.vocabulary, plan.block)
        self.rest = blocks(problem.vocabulary, self.student.vocabulary_rows, plan.block)
        self._in_block = by_block(self.labels, (*self.shared, *self.rest))
        zeros = self.student_rows.new_zeros(len(self.labels), dtype=self.student.wide)
        low = zeros - 1e30  # below every logit, and far from overflow where two of them are subtracted
        self.peak_s, self.peak_t, self.peak_all = low, low.clone(), low
        self.total_s, self.total_t, self.cross = zeros, zeros.clone(), zeros.clone()  # at T, shared vocabulary
        self.total, self.moment = zeros.clone(), zeros.clone()  # at T = 1, whole vocabulary
        self.label = zeros.clone()  # z of the label
        self.at_top = zeros.clone()  # the student's z of the token that the teacher ranks first
        # of a shared block exponentials are kept if the gradient needs nothing else, else z
        simple = self.divergence.of_exponentials and self.student.head.softcap is None
        self._exponentials = plan.keep and simple and self.student.has_cheap_powers
        self._peaks: dict[int, tuple[Tensor, Tensor]] = {}  # the maxima that were subtracted in a block's exponentials

    def measure(self) -> None:
        """Sum up everything the values need, in one pass over the vocabulary."""
        for block in self.shared:
            self._measure_shared(block)
        self._complete_shared()
        for block in self.rest:
            self._measure_rest(block)

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return per token, [R] each: cross-entropy, divergence, entropy, agreement and correctness (0 or 1)."""
        log_total = self.total.log()
        ce = log_total - self.student.at_one(self.label - self.peak_all)
        kl = self._divergence() if self.shared else torch.zeros_like(ce)
        agreement = (self.at_top == self.peak_s).to(ce.dtype) * bool(self.shared)
        correct = (self.label == self.peak_all).to(ce.dtype)
        return ce, kl, log_total - self.moment / self.total, agreement, correct

    def add_gradients(
        self, weight_ce: Tensor | None, weight_kl: Tensor | None, into: Gradients, *, first: bool
    ) -> None:
        """Add the gradient of sum(weight_ce * ce + weight_kl * kl), one more pass; weights are [R], None is zero."""
        if weight_kl is None and self._exponentials:
            weight_kl = torch.zeros_like(self.label)  # the kept exponentials serve both terms
        hidden = None
        if into.hidden is not None:
            hidden = torch.zeros_like(self.student_rows, dtype=into.hidden.dtype)
        for block in (*self.shared, *self.rest):
            gradient = self._logit_gradient(block, weight_ce, weight_kl)
            if hidden is not None:
                self.student.add_hidden_gradient(hidden, gradient, block)
            if into.weight is not None:
                multiply(gradient, self.student_rows, into.weight[block], add=not first)
            if into.bias is not None:
                into.bias[block] += gradient.sum(1)
        if hidden is not None and into.hidden is not None:
            into.hidden[self.index] = hidden

    # -- first pass

    def _divergence(self) -> Tensor:
        """Return the divergence per token once all blocks are in."""
        return self.divergence.value(self)

    def _measure_shared(self, block: slice) -> None:
        """Both models' logits of a block that both have."""
        z_s, z_t = self._project(block)
        s, es, t, gap = self.buffers.scratch(block, len(self.labels))
        peak_s, highest_t = torch.maximum(self.peak_s, z_s.amax(0)), z_t.amax(0)
        _follow_top(z_t, z_s, highest_t > self.peak_t, self.at_top)
        peak_t = torch.maximum(self.peak_t, highest_t)
        fall_s, fall_t = self.peak_s - peak_s, self.peak_t - peak_t
        factor_s, factor_t = fall_s.exp(), fall_t.exp()
        self.divergence.rescale(self, factor_s, factor_t, fall_t - fall_s)
        self.total_s *= factor_s
        self.total_t *= factor_t
        self._rescale_at_one(fall_s)
        self.peak_s, self.peak_t = peak_s, peak_t
        self._note_labels(z_s, block)
        torch.sub(z_s, peak_s, out=s)
        torch.sub(torch.sub(z_t, peak_t, out=t), s, out=gap)
        if self._exponentials:
            self._peaks[block.start] = peak_s, peak_t
            exp_s, exp_t = torch.exp(s, out=z_s), torch.exp(t, out=z_t)
        else:
            exp_s, exp_t = torch.exp(s, out=es), t.exp_()
        mass = exp_s.sum(0)
        self.total_s += mass
        self.total_t += exp_t.sum(0)
        self.divergence.add(self, gap, exp_s, exp_t)
        if self.student.is_softened:
            self._add_at_one(s, self.student.power(exp_s, s, out=es), gap)
        else:
            self._add_at_one(s, exp_s, gap, mass)

    def _measure_rest(self, block: slice) -> None:
        """The student's logits of a block that is not compared with the teacher's."""
        z, _ = self._project(block)
        u, e, product, _ = self.buffers.scratch(block, len(self.labels))
        peak = torch.maximum(self.peak_all, z.amax(0))
        self._rescale_at_one(self.peak_all - peak)
        self.peak_all = peak
        self._note_labels(z, block)
        torch.exp(torch.sub(z, peak, out=u), out=e)
        self._add_at_one(u, self.student.power(e, u, out=e), product)

    def _add_at_one(self, s: Tensor, e: Tensor, product: Tensor, mass: Tensor | None = None) -> None:
        """Add a block to the student's softmax at T = 1, e = exp(T s): its sum, which may be known, and mean logit."""
        self.total += e.sum(0) if mass is None else mass
        self.moment += self.student.at_one(nan_to_zero(torch.mul(e, s, out=product), self.rules_out).sum(0))

    def _note_labels(self, z: Tensor, block: slice) -> None:
        rows, places = self._labels_in(block)
        if len(rows):
            self.label[rows] = z[places, rows]

    def _rescale_at_one(self, fall: Tensor) -> None:
        fall = self.student.at_one(fall)
        factor = fall.exp()
        self.moment.add_(fall * self.total).mul_(factor)
        self.total *= factor

    # -- later passes

    def _complete_shared(self) -> None:
        """Complete the sums over the shared vocabulary: some need both softmaxes."""
        self.peak_all = self.peak_s
        if isinstance(self.divergence, JensenShannon):
            for block in self.shared:
                z_s, z_t = self._project(block, again=True)
                s, t, _, _ = self.buffers.scratch(block, len(self.labels))
                z_s, z_t = torch.sub(z_s, self.peak_s, out=s), torch.sub(z_t, self.peak_t, out=t)
                self.divergence.add_complete(self, z_s, z_t)

    def _logit_gradient(self, block: slice, weight_ce: Tensor | None, weight_kl: Tensor | None) -> Tensor:
        """Return d sum(weight_ce ce + weight_kl kl) / d (hidden @ weight.T + bias) of a block, [B, R]."""
        z_s, z_t = self._project(block, again=True)
        s, es, _, place = self.buffers.scratch(block, len(self.labels))
        slope = self.student.slope(z_s, out=place)
        if block.start < self.problem.vocabulary and weight_kl is not None:
            shared = self._gradient_of_exponentials if self._exponentials else self._shared_gradient
            gradient = shared((z_s, z_t), weight_ce, self.student.softened(weight_kl), block)
        elif weight_ce is not None:
            torch.exp(torch.sub(z_s, self.peak_all, out=s), out=es)
            gradient = self.student.power(es, s, out=z_s).mul_(weight_ce / self.total)
        else:
            gradient = z_s.zero_()
        rows, places = self._labels_in(block)
        if weight_ce is not None and len(rows):
            gradient[places, rows] -= weight_ce[rows]
        if slope is not None:
            return gradient.mul_(slope)
        return gradient if self.student.head.scale == 1.0 else gradient.mul_(self.student.head.scale)

    def _shared_gradient(
        self, z: tuple[Tensor, Tensor], weight_ce: Tensor | None, weight_kl: Tensor, block: slice
    ) -> Tensor:
        """The same for a block that both models have, but for the labels' entries; takes the place of the student's z.

        `weight_kl` is that of the divergence's gradient in z.
        """
        z_s, z_t = z
        s, es, t, _ = self.buffers.scratch(block, len(self.labels))
        torch.exp(torch.sub(z_s, self.peak_s, out=s), out=es)
        torch.sub(z_t, self.peak_t, out=t)
        self.divergence.gradient(self, weight_kl, s, t, es, out=z_s)
        if weight_ce is not None:
            z_s.add_(self.student.power(es, s, out=s).mul_(self._at_one(weight_ce, self.peak_s)))
        return z_s

    def _gradient_of_exponentials(
        self, kept: tuple[Tensor, Tensor], weight_ce: Tensor | None, weight_kl: Tensor, block: slice
    ) -> Tensor:
        """The same from kept exponentials; the rise of the maxima since then goes into the weights, [R]."""
        exp_s, exp_t = kept
        peak_s, peak_t = self._peaks[block.start]
        place = self.buffers.scratch(block, len(self.labels))[0]
        e = None if weight_ce is None else self.student.power(exp_s, None, out=place)
        # the difference first and rounded alike: it is 0 if both agree, and Adam would make steps of rounding errors
        exp_s.mul_(weight_kl / self.total_s * (peak_s - self.peak_s).exp())
        exp_s.sub_(exp_t.mul_(weight_kl / self.total_t * (peak_t - self.peak_t).exp()))
        if e is not None and weight_ce is not None:
            exp_s.addcmul_(e, self._at_one(weight_ce, peak_s))
        return exp_s

    def _at_one(self, weight_ce: Tensor, peak: Tensor) -> Tensor:
        """Return the factor that turns exp(T (z - peak)) into the weighted softmax at T = 1, [R]."""
        return weight_ce / self.total * self.student.at_one(peak - self.peak_all).exp()

    # -- both

    def _project(self, block: slice, *, again: bool = False) -> tuple[Tensor, Tensor]:
        """Return both models' logits of a block, [B, R]; the teacher's only if they are shared."""
        z_s, z_t = self.buffers.logits(block, len(self.labels))
        if again and self.keep:
            return z_s, z_t
        self.student.logits_of(self.student_rows, block, out=z_s)
        if self.teacher_logits is not None and block.start < self.problem.vocabulary:
            self.teacher_logits(block, z_t)
        return z_s, z_t

    def _labels_in(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return the tokens whose label lies in a block, and the labels' places in it."""
        rows = self._in_block[block.start]
        return rows, self.labels[rows] - block.start


def by_block(ids: Tensor, parts: Sequence[slice]) -> dict[int, Tensor]:
    """Return the places in `ids` [n] of those that lie in a block, by its start; ids before all blocks are left out."""
    order = ids.argsort()
    starts = [block.start for block in parts]
    edges = torch.searchsorted(ids[order], torch.tensor(starts, device=order.device)).tolist()
    spans = zip(edges, [*edges[1:], len(order)], strict=True)
    return {start: order[a:b] for start, (a, b) in zip(starts, spans, strict=True)}


def _follow_top(teacher: Tensor, student: Tensor, higher: Tensor, at_top: Tensor) -> None:
    """If a block [B, R] has the teacher's new maximum (`higher` [R]), note the student's z there."""
    if teacher.device.type == "cpu":
        rows = higher.nonzero()[:, 0]  # few after the first blocks; argmax is a slow pass
        if len(rows):
            at_top[rows] = student[teacher[:, rows].argmax(0), rows]
    else:
        torch.where(higher, student.gather(0, teacher.argmax(0)[None])[0], at_top, out=at_top)
