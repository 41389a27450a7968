"""The loss against a distribution of which a few tokens are known: the student alone is projected, in tiles.

A token's k known tokens v have probabilities p_v at T; what they leave of 1 is the tail, one bucket, or there is none.

    sum_known p (log p - log q) + p_tail (log p_tail - log q_tail)

with the student's tail from all of its logits. The gradient in the student's softened logits is q_v - p_v for a known
token and q_v (1 - p_tail / q_tail) for any other; without a tail it is q_v for those. A token of which nothing is known
is all tail: its divergence and gradient are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..result import DistillationLoss, check_head, check_impl, check_settings, check_targets, valid_rows
from .autograd import Weights, fused_loss
from .divergences import ForwardKL, settled
from .gpu import serves
from .projection import Projection, product_dtype, wide_dtype
from .tile import Buffers, Problem, Tile, power
from .tile_plan import Plan

if TYPE_CHECKING:
    from .gpu import Pass
    from .tile_plan import KernelPlan

Tensor = torch.Tensor
MASKED = -2e30  # a logit that adds nothing, below the lowest peak of a tile


@dataclass(frozen=True)
class Sparse:
    """What is known of a teacher's distributions at N tokens, at the training's temperature.

    Attributes:
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first; -1 where there is none.
        probs: [N, k], 0 where there is no token.
        tail: [N], the mass of all other tokens; None where there is no tail.
        negentropy: [N] of sum p log p, to put in the place of the known tokens' own; None takes theirs.
    """

    token_ids: Tensor
    probs: Tensor
    tail: Tensor | None = None
    negentropy: Tensor | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return all four."""
        return self.token_ids, self.probs, self.tail, self.negentropy


def sparse_loss(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    targets: Tensor,
    known: Sparse,
    valid: Tensor | None,
    *,
    student_bias: Tensor | None,
    student_softcap: float | None,
    student_scale: float,
    vocabulary: int,
    alpha: float,
    temperature: float,
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Return alpha T^2 kl + (1 - alpha) ce; where nothing is known of a token, its ce.

    Args:
        student_hidden: [N, H].
        student_weight: [V, H], or None for logits.
        targets: [N] int64.
        known: The teacher's side.
        valid: Indices [n] of the tokens that count; None is all of them.
        student_bias: [V] or None.
        student_softcap: Bound of the student's logits, or None.
        student_scale: Factor of the student's logits before the softcap.
        vocabulary: Rows over which the divergence is taken.
        alpha: Weight of the divergence.
        temperature: T.
        tile_bytes: Bound on working memory.
    """
    student = Projection(
        *(student_hidden, student_weight, student_bias, student_softcap, student_scale, temperature),
        dtype=product_dtype(student_hidden),
        wide=wide_dtype(student_hidden.dtype),
    )
    problem = SparseProblem(student, None, targets, vocabulary, temperature, ForwardKL(), known)
    weights = Weights(ce_weight(known, alpha), alpha * temperature**2, typical_ce=1.0 - alpha)
    return fused_loss(problem, valid, weights, tile_bytes)


def ce_weight(known: Sparse, alpha: float) -> float | Tensor:
    """Return the weight of the cross-entropy: 1 - alpha, and 1 for tokens of which nothing is known."""
    unknown = (known.token_ids < 0).all(1)
    if unknown.device.type == "cpu" and not unknown.any():  # a GPU is not waited for
        return 1.0 - alpha
    return torch.full_like(known.probs[:, 0], 1.0 - alpha).masked_fill(unknown, 1.0)


def check_sparse_divergence(divergence: str, kind: str) -> None:
    """Raise ValueError for a divergence that needs more of the teacher than a few tokens.

    Args:
        divergence: Which one.
        kind: What the targets are: "topk" or "sample".
    """
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence {divergence!r} needs the teacher's probability of every token, and targets of the kind {kind} "
            'have that of a few; choose "forward_kl", or targets of the kind hidden.'
        )


def checked_rows(
    kind: str,
    student: tuple[Tensor, Tensor | None, Tensor | None],
    targets: Tensor,
    known: tuple[Tensor, dict[str, Tensor], dict[str, Tensor]],
    *,
    vocabulary: int,
    alpha: float,
    temperature: float,
    divergence: str,
    ignore_index: int,
    impl: str,
) -> Tensor | None:
    """Check what a loss on sparse targets is given, and return the indices [n] of the tokens that count; None is all.

    Args:
        kind: What the targets are: "topk" or "sample".
        student: Hidden states [N, H], weight [V, H] and bias of the student.
        targets: [N].
        known: Token ids [N, k], and by name what must be [N, k] and what must be [N].
        vocabulary: Rows over which the teacher was normalised.
        alpha: Weight of the divergence.
        temperature: T.
        divergence: Which one.
        ignore_index: Target that marks a token to leave out.
        impl: "fused" or "plain".

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted.
    """
    hidden, weight, bias = student
    check_settings(alpha, temperature, divergence, 0.5)
    check_sparse_divergence(divergence, kind)
    check_impl(impl)
    check_targets(targets, hidden, hidden, alpha)
    rows = check_head("student", hidden, weight, bias)
    check_known(targets, *known, vocabulary, rows)
    return valid_rows(targets, ignore_index, rows, masks=impl == "fused" and serves(hidden))


def check_known(
    targets: Tensor,
    token_ids: Tensor,
    of_tokens: dict[str, Tensor],
    of_rows: dict[str, Tensor],
    vocabulary: int,
    rows: int,
) -> None:
    """Raise ValueError unless what is known describes the N targets.

    Args:
        targets: [N].
        token_ids: [N, k], ids below the vocabulary or -1.
        of_tokens: By name, what must be [N, k].
        of_rows: By name, what must be [N].
        vocabulary: Rows over which the teacher was normalised.
        rows: The student's rows.
    """
    tokens, k = len(targets), token_ids.shape[-1]
    for name, tensor in {"token_ids": token_ids, **of_tokens}.items():
        if tensor.dim() != 2 or tensor.shape != token_ids.shape or len(tensor) != tokens or k == 0:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must be [N, k] like token_ids {tuple(token_ids.shape)}, for the N = "
                f"{tokens} targets and at least one token."
            )
    for name, tensor in of_rows.items():
        if tensor.shape != (tokens,):
            raise ValueError(f"{name} {tuple(tensor.shape)} must be [N], one for each of the N = {tokens} targets.")
    if not 0 < vocabulary <= rows or k > vocabulary:
        raise ValueError(f"vocabulary {vocabulary} must lie between k = {k} and {rows}, the student's rows.")
    if token_ids.device.type != "cpu" or not token_ids.numel():
        return  # a GPU is not waited for: there such an id makes the loss NaN
    low, high = (int(i) for i in token_ids.aminmax())
    if low < -1 or high >= vocabulary:
        wrong = low if low < -1 else high
        raise ValueError(
            f"token_ids hold {wrong}, which is no row below vocabulary {vocabulary}; the targets are another's."
        )


@dataclass(frozen=True)
class SparseProblem(Problem):
    """A problem whose teacher is a few numbers; they stand where the tensors of a teacher's head would."""

    known: Sparse

    @property
    def shared(self) -> int:
        """Rows over which the divergence is taken."""
        return self.vocabulary

    def kernel_pass(self, plan: KernelPlan) -> Pass:
        """Return what the kernels of a GPU do with a tile of the student's logits."""
        from .gpu_sparse import SparsePass

        return SparsePass(self, plan)

    def kernel_room(self) -> int:
        """Return how many numbers a row takes beside the student's logits: a copy of those that a caller has made."""
        return self.student.vocabulary if self.student.weight is None else 0

    def tile(self, plan: Plan, buffers: Buffers, index: slice | Tensor) -> Tile:
        """Return a tile of its tokens."""
        return SparseTile(self, plan, buffers, index)

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the student's three tensors, what is known of the teacher, and the targets."""
        return (*self.student.tensors(), *self.known.tensors(), self.targets)

    def with_tensors(self, tensors: Sequence[Any]) -> SparseProblem:
        """Return the same problem on other tensors."""
        student = self.student.with_tensors(*tensors[:3])
        return replace(self, student=student, known=Sparse(*tensors[3:7]), targets=tensors[7])


class SparseTile(Tile):
    """R tokens of a sparse problem.

    The first pass sums up the tail alone, from its own maximum, so that a tail far below the known tokens keeps its
    gradient; the known tokens' z, [k, R], are picked out and added at the end.
    """

    def __init__(self, problem: SparseProblem, plan: Plan, buffers: Buffers, index: slice | Tensor) -> None:
        super().__init__(problem, plan, buffers, index)
        self._block_peaks: dict[int, Tensor] = {}  # the maxima that a block's exponentials are taken from
        known, wide = problem.known, problem.student.wide
        self.ids = known.token_ids[index].t()
        self._sort_ids()
        self.p = known.probs[index].t().to(wide)
        self.tail_p = None if known.tail is None else known.tail[index].to(wide)
        self.negentropy = None if known.negentropy is None else known.negentropy[index].to(wide)
        self.top = torch.full_like(self.p, MASKED)
        self.tail_peak, self.tail = self.peak_all, torch.zeros_like(self.peak_all)

    def measure(self) -> None:
        """Sum up everything the values need, in one pass over the vocabulary."""
        for block in self.shared:
            self._measure_shared(block)
        self._add_top()
        for block in self.rest:
            self._measure_rest(block)

    def _measure_shared(self, block: slice) -> None:
        """Add the tail's part of a block, and note the known tokens' z."""
        z, _ = self._project(block)
        u, e, product, _ = self.buffers.scratch(block, len(self.targets))
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
        T = self.problem.temperature
        self._add_at_one(u, exponentials if T == 1 else power(exponentials, u, T, out=e), product)
        if self._exponentials:
            self._block_peaks[block.start] = peak
        else:
            z[places, rows] = kept

    def _add_top(self) -> None:
        """Complete the sums over the shared vocabulary."""
        peak = torch.maximum(self.tail_peak, self.top.amax(0))
        fall, s = self.tail_peak - peak, self.top - peak
        self.total_s = self.tail * fall.exp() + s.exp().sum(0)
        self._rescale_at_one(fall)
        at_one = (s * self.problem.temperature).exp()
        self.total += at_one.sum(0)
        self.moment += settled(at_one * s, self).sum(0) * self.problem.temperature
        self.peak_s = self.peak_all = peak
        self.at_top = self.top[0]

    def _divergence(self) -> Tensor:
        """Return the divergence over the k + 1 buckets per token."""
        log_total = self.peak_s + self.total_s.log()
        own = torch.xlogy(self.p, self.p).sum(0) if self.negentropy is None else self.negentropy
        out = own - settled(self.p * (self.top - log_total), self).sum(0)
        if self.tail_p is None:
            return out
        log_tail = self.tail_peak + self.tail.log() - log_total
        tail = torch.xlogy(self.tail_p, self.tail_p) - self.tail_p * log_tail
        return out + torch.where(self.tail_p > 0, tail, 0.0)

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
        torch.exp(torch.sub(z_s, self.tail_peak, out=s).clamp_(max=0), out=e)  # known tokens are set below
        torch.mul(e, weight_kl * self._tail_factor(self.tail_peak), out=z_s)
        if weight_ce is not None:
            at_one = power(e, s, self.problem.temperature, out=s)
            z_s.add_(at_one.mul_(self._at_one(weight_ce, self.tail_peak)))
        return self._put_known(z_s, weight_ce, weight_kl, block)

    def _gradient_of_exponentials(
        self,
        exp_s: Tensor,
        exp_t: Tensor,
        weight_ce: Tensor | None,
        weight_kl: Tensor,
        scratch: tuple[Tensor, ...],
        block: slice,
    ) -> Tensor:
        """The same from kept exponentials."""
        peak, T = self._block_peaks[block.start], self.problem.temperature
        factor = weight_kl * self._tail_factor(peak)
        if weight_ce is None:
            exp_s.mul_(factor)
        elif T == 1:
            exp_s.mul_(factor + self._at_one(weight_ce, peak))
        else:
            at_one = power(exp_s, None, T, out=scratch[0]).mul_(self._at_one(weight_ce, peak))
            torch.addcmul(at_one, exp_s, factor, out=exp_s)
        return self._put_known(exp_s, weight_ce, weight_kl, block)

    def _tail_factor(self, peak: Tensor) -> Tensor:
        """Return what turns exp(z - peak) of a tail's token into its gradient, [R]."""
        factor = (peak - self.peak_s).exp() / self.total_s
        if self.tail_p is None:
            return factor
        learnt = (self.tail_p > 0) & (self.tail > 0)  # a tail that is ruled out has no gradient
        return factor - torch.where(learnt, self.tail_p / self.tail * (peak - self.tail_peak).exp(), 0.0)

    def _put_known(self, gradient: Tensor, weight_ce: Tensor | None, weight_kl: Tensor, block: slice) -> Tensor:
        """Set the known tokens' entries of a block's gradient."""
        own = self.top - self.peak_s
        patch = weight_kl * (own.exp() / self.total_s - self.p)
        if weight_ce is not None:
            patch += (own * self.problem.temperature).exp() * self._at_one(weight_ce, self.peak_s)
        ranks, rows, places = self._known_in(block)
        gradient[places, rows] = patch[ranks, rows]
        return gradient

    def _sort_ids(self) -> None:
        """Order the known tokens by id, so that a block finds its own at once; those that are none lie before all."""
        flat = self.ids.reshape(-1)
        self._order = flat.argsort()
        starts = [block.start for block in self.shared]
        edges = torch.searchsorted(flat[self._order], torch.tensor(starts, device=flat.device)).tolist()
        self._edges = dict(zip(starts, zip(edges, [*edges[1:], len(flat)], strict=True), strict=True))

    def _known_in(self, block: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return rank, token and place of the known tokens that lie in a block."""
        first, last = self._edges[block.start]
        picked = self._order[first:last]
        ranks, rows = picked // self.ids.shape[1], picked % self.ids.shape[1]
        return ranks, rows, self.ids[ranks, rows] - block.start
