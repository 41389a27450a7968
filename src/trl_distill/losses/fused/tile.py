"""The passes over one tile of tokens: sums for the values, then the gradient, a block of the vocabulary at a time.

The elementwise steps of a block run in place on a few small buffers, so they stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .divergences import Divergence, JensenShannon, settled
from .products import multiply
from .projection import Projection
from .tile_plan import Plan

if TYPE_CHECKING:
    from .gpu import Pass
    from .tile_plan import KernelPlan

Tensor = torch.Tensor
WHOLE = (1, 2, 3, 4)  # temperatures whose powers are cheap products


@dataclass(frozen=True)
class Problem:
    """What one call computes.

    Attributes:
        student: The student's head over N tokens.
        teacher: The teacher's, or None where the divergence has no weight.
        targets: [N] token ids.
        vocabulary: Rows [0, vocabulary) that both share.
        temperature: T of the divergence.
        divergence: Which one.
    """

    student: Projection
    teacher: Projection | None
    targets: Tensor
    vocabulary: int
    temperature: float
    divergence: Divergence

    @property
    def shared(self) -> int:
        """Rows [0, shared) over which a divergence is taken; 0 without a teacher."""
        return self.vocabulary if self.teacher else 0

    @property
    def rules_out(self) -> bool:
        """Whether a logit of either side may be -inf."""
        return self.student.rules_out or (self.teacher is not None and self.teacher.rules_out)

    def kernel_pass(self, plan: KernelPlan) -> Pass:
        """Return what the kernels of a GPU do with a tile of the student's logits."""
        from .gpu_pass import DensePass

        return DensePass(self, plan)

    def kernel_room(self) -> int:
        """Return how many numbers the teacher's logits take in a row of a tile on a GPU."""
        return self.teacher.kernel_room(self.vocabulary) if self.teacher else 0

    def tile(self, plan: Plan, buffers: Buffers, index: slice | Tensor) -> Tile:
        """Return a tile of its tokens."""
        return Tile(self, plan, buffers, index)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the seven tensors that `with_tensors` takes: hidden states, weight and bias of both, targets."""
        teacher = self.teacher.tensors() if self.teacher else (None, None, None)
        return (*self.student.tensors(), *teacher, self.targets)

    def with_tensors(self, tensors: Sequence[Any]) -> Problem:
        """Return the same problem on other tensors."""
        teacher = self.teacher.with_tensors(*tensors[3:6]) if self.teacher else None
        return Problem(
            self.student.with_tensors(*tensors[:3]),
            teacher,
            tensors[6],
            self.vocabulary,
            self.temperature,
            self.divergence,
        )


@dataclass(frozen=True)
class Gradients:
    """Where a tile adds its part of the gradients; None where nobody asks for it.

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
        options: dict[str, Any] = {"dtype": problem.student.wide, "device": problem.targets.device}
        wide = problem.student.vocabulary if plan.keep else plan.block
        shared = problem.vocabulary if plan.keep else min(plan.block, problem.vocabulary)
        self._keep, self._shared = plan.keep, problem.vocabulary
        self._student = torch.empty(wide * plan.rows, **options)
        self._teacher = torch.empty(shared * plan.rows if problem.teacher else 0, **options)
        self._scratch = [torch.empty(plan.block * plan.rows, **options) for _ in range(4)]

    def logits(self, block: slice, rows: int) -> tuple[Tensor, Tensor]:
        """Return the places [B, R] of both models' logits of a block; the teacher's is empty where it is not shared."""
        shared = block.stop <= self._shared
        start, stop = (block.start, block.stop) if self._keep else (0, block.stop - block.start)
        theirs = self._teacher[start * rows : stop * rows] if shared else self._teacher[:0]
        return self._student[start * rows : stop * rows].view(-1, rows), theirs.view(-1, rows)

    def scratch(self, block: slice, rows: int) -> list[Tensor]:
        """Return four places [B, R] without content."""
        size = block.stop - block.start
        return [buffer[: size * rows].view(size, rows) for buffer in self._scratch]


class Tile:
    """R tokens of a problem. `measure()` first, then `add_gradients()` if they are wanted.

    z are logits divided by T. The sums at T = 1 use them too: exp(T z) is a power of exp(z).
    """

    def __init__(self, problem: Problem, plan: Plan, buffers: Buffers, index: slice | Tensor) -> None:
        self.problem, self.buffers, self.index, self.keep = problem, buffers, index, plan.keep
        self.rules_out = problem.rules_out
        self.student_rows = problem.student.rows(index)
        self.teacher_rows = problem.teacher.rows(index) if problem.teacher else None
        self.targets = problem.targets[index]
        shared, whole = problem.shared, problem.student.vocabulary
        self.shared = _blocks(0, shared, plan.block)
        self.rest = _blocks(shared, whole, plan.block)
        self._sort_targets()
        zeros = self.student_rows.new_zeros(len(self.targets), dtype=problem.student.wide)
        low = zeros - 1e30  # below every logit, and far from overflow where two of them are subtracted
        self.peak_s, self.peak_t, self.peak_all = low, low.clone(), low
        self.total_s, self.total_t, self.cross = zeros, zeros.clone(), zeros.clone()  # at T, shared vocabulary
        self.total, self.moment = zeros.clone(), zeros.clone()  # at T = 1, whole vocabulary
        self.label = zeros.clone()  # z of the target
        self.at_top = zeros.clone()  # the student's z of the token that the teacher ranks first
        # what is kept of a shared block: exponentials where they are all that the gradient needs, else z
        simple = problem.divergence.of_exponentials and problem.student.softcap is None
        self._exponentials = plan.keep and simple and problem.temperature in WHOLE
        self._peaks: dict[int, tuple[Tensor, Tensor]] = {}  # the maxima that a block's exponentials are taken from

    def measure(self) -> None:
        """Sum up everything the values need, in one pass over the vocabulary."""
        for block in self.shared:
            self._measure_shared(block)
        self.peak_all = self.peak_s
        for block in self.rest:
            self._measure_rest(block)
        if isinstance(self.problem.divergence, JensenShannon) and self.shared:
            self._measure_completely(self.problem.divergence)

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return per token, [R] each: cross-entropy, divergence, entropy, agreement and correctness (0 or 1)."""
        log_total = self.total.log()
        ce = log_total - (self.label - self.peak_all) * self.problem.temperature
        kl = self._divergence() if self.shared else torch.zeros_like(ce)
        agreement = (self.at_top == self.peak_s).to(ce.dtype) * bool(self.shared)
        correct = (self.label == self.peak_all).to(ce.dtype)
        return ce, kl, log_total - self.moment / self.total, agreement, correct

    def add_gradients(
        self, weight_ce: Tensor | None, weight_kl: Tensor | None, into: Gradients, *, first: bool
    ) -> None:
        """Add the gradient of sum(weight_ce * ce + weight_kl * kl), one more pass; weights are [R], None is zero."""
        if weight_kl is None and self._exponentials:
            weight_kl = torch.zeros_like(self.label)  # what is kept serves both terms
        hidden = None
        if into.hidden is not None:
            hidden = torch.zeros_like(self.student_rows, dtype=into.hidden.dtype)
        for block in (*self.shared, *self.rest):
            gradient = self._logit_gradient(block, weight_ce, weight_kl)
            if hidden is not None:
                self.problem.student.add_hidden_gradient(hidden, gradient, block)
            if into.weight is not None:
                multiply(gradient, self.student_rows, into.weight[block], add=not first)
            if into.bias is not None:
                into.bias[block] += gradient.sum(1)
        if hidden is not None and into.hidden is not None:
            into.hidden[self.index] = hidden

    # -- first pass

    def _divergence(self) -> Tensor:
        """Return the divergence per token once all blocks are in."""
        return self.problem.divergence.value(self)

    def _measure_shared(self, block: slice) -> None:
        """Both models' logits of a block that both have."""
        z_s, z_t = self._project(block)
        s, es, t, gap = self.buffers.scratch(block, len(self.targets))
        peak_s, highest_t = torch.maximum(self.peak_s, z_s.amax(0)), z_t.amax(0)
        _follow_top(z_t, z_s, highest_t > self.peak_t, self.at_top)
        peak_t = torch.maximum(self.peak_t, highest_t)
        self._rescale(self.peak_s - peak_s, self.peak_t - peak_t)
        self.peak_s, self.peak_t = peak_s, peak_t
        self._note_labels(z_s, block)
        torch.sub(z_s, peak_s, out=s)
        torch.sub(torch.sub(z_t, peak_t, out=t), s, out=gap)
        if self._exponentials:
            self._peaks[block.start] = peak_s, peak_t
            exp_s, exp_t = torch.exp(s, out=z_s), torch.exp(t, out=z_t)
        else:
            exp_s, exp_t = torch.exp(s, out=es), t.exp_()
        mass, T = exp_s.sum(0), self.problem.temperature
        self.total_s += mass
        self.total_t += exp_t.sum(0)
        self.problem.divergence.add(self, gap, exp_s, exp_t)
        if T == 1:
            self._add_at_one(s, exp_s, gap, mass)
        else:
            self._add_at_one(s, power(exp_s, s, T, out=es), gap)

    def _measure_rest(self, block: slice) -> None:
        """The student's logits of a block that is not compared with the teacher's."""
        z, _ = self._project(block)
        u, e, product, _ = self.buffers.scratch(block, len(self.targets))
        peak = torch.maximum(self.peak_all, z.amax(0))
        self._rescale_at_one(self.peak_all - peak)
        self.peak_all = peak
        self._note_labels(z, block)
        torch.exp(torch.sub(z, peak, out=u), out=e)
        self._add_at_one(u, power(e, u, self.problem.temperature, out=e), product)

    def _add_at_one(self, s: Tensor, e: Tensor, product: Tensor, mass: Tensor | None = None) -> None:
        """Add a block to the student's softmax at T = 1, e = exp(T s): its sum, which may be known, and mean logit."""
        self.total += e.sum(0) if mass is None else mass
        self.moment += settled(torch.mul(e, s, out=product), self).sum(0) * self.problem.temperature

    def _note_labels(self, z: Tensor, block: slice) -> None:
        """Note the z of the targets that lie in a block."""
        rows, places = self._targets_in(block)
        if len(rows):
            self.label[rows] = z[places, rows]

    def _rescale(self, fall_s: Tensor, fall_t: Tensor) -> None:
        """Move all sums to higher maxima; the arguments are old less new, [R]."""
        factor_s, factor_t = fall_s.exp(), fall_t.exp()
        self.problem.divergence.rescale(self, factor_s, factor_t, fall_t - fall_s)
        self.total_s *= factor_s
        self.total_t *= factor_t
        self._rescale_at_one(fall_s)

    def _rescale_at_one(self, fall: Tensor) -> None:
        fall = fall * self.problem.temperature
        factor = fall.exp()
        self.moment.add_(fall * self.total).mul_(factor)
        self.total *= factor

    # -- later passes

    def _measure_completely(self, divergence: JensenShannon) -> None:
        """The sums that need both softmaxes complete."""
        divergence.start(self)
        for block in self.shared:
            z_s, z_t = self._project(block, again=True)
            s, t, _, _ = self.buffers.scratch(block, len(self.targets))
            divergence.add_complete(self, torch.sub(z_s, self.peak_s, out=s), torch.sub(z_t, self.peak_t, out=t))

    def _logit_gradient(self, block: slice, weight_ce: Tensor | None, weight_kl: Tensor | None) -> Tensor:
        """Return d sum(weight_ce ce + weight_kl kl) / d (hidden @ weight.T + bias) of a block, [B, R]."""
        student = self.problem.student
        z_s, z_t = self._project(block, again=True)
        s, es, t, place = self.buffers.scratch(block, len(self.targets))
        slope = student.slope(z_s, out=place)
        if block.start < self.problem.vocabulary and self.shared and weight_kl is not None:
            shared = self._gradient_of_exponentials if self._exponentials else self._shared_gradient
            gradient = shared(z_s, z_t, weight_ce, weight_kl / self.problem.temperature, (s, es, t), block)
        elif weight_ce is not None:
            torch.exp(torch.sub(z_s, self.peak_all, out=s), out=es)
            gradient = power(es, s, self.problem.temperature, out=z_s).mul_(weight_ce / self.total)
        else:
            gradient = z_s.zero_()
        rows, places = self._targets_in(block)
        if weight_ce is not None and len(rows):
            gradient[places, rows] -= weight_ce[rows]
        if slope is not None:
            return gradient.mul_(slope)
        return gradient if student.scale == 1.0 else gradient.mul_(student.scale)

    def _shared_gradient(
        self,
        z_s: Tensor,
        z_t: Tensor,
        weight_ce: Tensor | None,
        weight_kl: Tensor,
        scratch: tuple[Tensor, ...],
        block: slice,
    ) -> Tensor:
        """The same for a block that both models have, but for the targets' entries; takes the place of `z_s`.

        `weight_kl` is that of the divergence's gradient in z.
        """
        s, es, t = scratch
        torch.exp(torch.sub(z_s, self.peak_s, out=s), out=es)
        torch.sub(z_t, self.peak_t, out=t)
        self.problem.divergence.gradient(self, weight_kl, s, t, es, out=z_s)
        if weight_ce is not None:
            z_s.add_(power(es, s, self.problem.temperature, out=s).mul_(self._at_one(weight_ce, self.peak_s)))
        return z_s

    def _gradient_of_exponentials(
        self,
        exp_s: Tensor,
        exp_t: Tensor,
        weight_ce: Tensor | None,
        weight_kl: Tensor,
        scratch: tuple[Tensor, ...],
        block: slice,
    ) -> Tensor:
        """The same from kept exponentials; what the maxima have risen since goes into the weights, [R]."""
        peak_s, peak_t = self._peaks[block.start]
        e = None if weight_ce is None else power(exp_s, None, self.problem.temperature, out=scratch[0])
        # the difference first and rounded alike: it is 0 where both agree, and Adam makes steps of what rounding leaves
        exp_s.mul_(weight_kl / self.total_s * (peak_s - self.peak_s).exp())
        exp_s.sub_(exp_t.mul_(weight_kl / self.total_t * (peak_t - self.peak_t).exp()))
        if e is not None and weight_ce is not None:
            exp_s.addcmul_(e, self._at_one(weight_ce, peak_s))
        return exp_s

    def _at_one(self, weight_ce: Tensor, peak: Tensor) -> Tensor:
        """Return what turns exp(T (z - peak)) into the weighted softmax at T = 1, [R]."""
        return weight_ce / self.total * ((peak - self.peak_all) * self.problem.temperature).exp()

    # -- both

    def _project(self, block: slice, *, again: bool = False) -> tuple[Tensor, Tensor]:
        """Return both models' logits of a block, [B, R]; the teacher's only where they are shared."""
        z_s, z_t = self.buffers.logits(block, len(self.targets))
        if again and self.keep:
            return z_s, z_t
        self.problem.student.logits(self.student_rows, block, out=z_s)
        if self.problem.teacher and self.teacher_rows is not None and block.start < self.problem.vocabulary:
            self.problem.teacher.logits(self.teacher_rows, block, out=z_t)
        return z_s, z_t

    def _sort_targets(self) -> None:
        """Order the tokens by target, so that a block finds its own at once."""
        order = self.targets.argsort()
        starts = [block.start for block in (*self.shared, *self.rest)]
        edges = torch.searchsorted(self.targets[order], torch.tensor(starts, device=order.device)).tolist()
        spans = zip(edges, [*edges[1:], len(order)], strict=True)
        self._in_block = {start: order[a:b] for start, (a, b) in zip(starts, spans, strict=True)}

    def _targets_in(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return the tokens whose target lies in a block, and the targets' places in it."""
        rows = self._in_block[block.start]
        return rows, self.targets[rows] - block.start


def _blocks(start: int, stop: int, size: int) -> list[slice]:
    return [slice(a, min(a + size, stop)) for a in range(start, stop, size)]


def power(e: Tensor, s: Tensor | None, temperature: float, out: Tensor) -> Tensor:
    """Write exp(temperature * s) into `out`, given e = exp(s); whole powers cost an eighth of an exponential.

    `s` may be None for a temperature of `WHOLE`; `out` may be `s`, or `e` where that is not needed any more.
    """
    if temperature == 1:
        return e if out is e else out.copy_(e)
    if temperature == 4:
        return torch.square(e, out=out).square_()
    if temperature in WHOLE:
        return torch.pow(e, int(temperature), out=out)
    assert s is not None
    return torch.mul(s, temperature, out=out).exp_()


def _follow_top(teacher: Tensor, student: Tensor, higher: Tensor, at_top: Tensor) -> None:
    """Where `higher` [R] says that a block [B, R] has the teacher's new maximum, note the student's z there."""
    if teacher.device.type == "cpu":
        rows = higher.nonzero()[:, 0]  # few after the first blocks; argmax is a slow pass
        if len(rows):
            at_top[rows] = student[teacher[:, rows].argmax(0), rows]
    else:
        torch.where(higher, student.gather(0, teacher.argmax(0)[None])[0], at_top, out=at_top)
