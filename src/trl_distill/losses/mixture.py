"""The loss against a weighted mixture of several teachers' distributions, exact for every divergence.

A tile takes a teacher's softened logits; a mixture's are its log-probabilities,
log p(v) = logsumexp_i (log w_i + z_i(v) - lse_i), with z_i teacher i's logits over T and lse_i their log-normaliser,
which one earlier pass over that teacher's vocabulary gives. The mixture is of the softened distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .fused.autograd import Weights, fused_loss
from .fused.divergences import divergence_of
from .fused.gpu import serves
from .fused.projection import Projection, product_dtype, wide_dtype
from .fused.tile import Problem
from .fused.tile_plan import padded
from .reference import distillation_loss_from_logits, head_logits, mixture_logits
from .result import (
    DistillationLoss,
    check_head,
    check_impl,
    check_settings,
    check_targets,
    shared_vocabulary,
    valid_rows,
    vocabulary_rows,
)

if TYPE_CHECKING:
    from .fused.gpu_pass import MixtureHead
    from .fused.tile_plan import KernelPlan

Tensor = torch.Tensor
BLOCK = 4096  # vocabulary rows at a time in the pass for the log-normalisers


class TeacherSide(NamedTuple):
    """One teacher of a mixture, at N tokens.

    Attributes:
        hidden: [N, H_i]; what stands at a token at which its weight is 0 is not looked at, as long as it is finite.
        weight: [V_i, H_i] of its LM head; None if `hidden` are its logits [N, V_i] already.
        bias: [V_i] or None.
        softcap: Bound of its logits, or None.
        scale: Factor of its logits before the softcap.
    """

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0


def mixture_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    targets: Tensor,
    *,
    teachers: Sequence[TeacherSide],
    weights: Tensor,
    alpha: float,
    temperature: float,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    student_bias: Tensor | None = None,
    student_softcap: float | None = None,
    student_scale: float = 1.0,
    vocabulary: int | None = None,
    ignore_index: int = -100,
    impl: str = "fused",
    tile_bytes: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 D(sum_i w_i p_i, student_T) + (1 - alpha) CE over N tokens, p_i teacher i softened by T.

    Precision, gradients and the student's arguments are those of `fused_distillation_loss`. "fused" needs two blocks of
    scratch beyond `tile_bytes`.

    Args:
        student_hidden: [N, H_s].
        student_weight: [V_s, H_s]; None if `student_hidden` are logits [N, V_s] already.
        targets: [N] int64; rows of `ignore_index` are dropped.
        teachers: The M teachers, of any widths.
        weights: [N, M], at least 0, each row with a sum above 0; rows are normalised.
        alpha: Weight of the divergence, above 0 and at most 1.
        temperature: T > 0.
        divergence: As in `fused_distillation_loss`.
        jsd_beta: Likewise.
        student_bias: [V_s] or None.
        student_softcap: Bound of the student's logits, or None.
        student_scale: Factor of the student's logits before the softcap.
        vocabulary: Rows that all share and are renormalised to; the default is the smallest V.
        ignore_index: Target that marks a token to leave out.
        impl: "fused", or "plain" with the logits of all tokens in memory.
        tile_bytes: Working memory of "fused", in bytes.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    check_settings(alpha, temperature, divergence, jsd_beta)
    check_impl(impl)
    shared = _check(student_hidden, student_weight, student_bias, targets, teachers, weights, alpha, vocabulary)
    kernels = impl == "fused" and serves(student_hidden)
    valid = valid_rows(targets, ignore_index, vocabulary_rows(student_hidden, student_weight), masks=kernels)
    if impl == "plain":
        logits = [head_logits(t.hidden, t.weight, t.bias, softcap=t.softcap, scale=t.scale).detach() for t in teachers]
        own = head_logits(student_hidden, student_weight, student_bias, softcap=student_softcap, scale=student_scale)
        return distillation_loss_from_logits(
            own,
            mixture_logits(logits, weights, temperature=temperature, vocabulary=shared),
            targets,
            alpha=alpha,
            temperature=temperature,
            divergence=divergence,
            jsd_beta=jsd_beta,
            ignore_index=ignore_index,
        )
    wide = wide_dtype(student_hidden.dtype)
    settings: dict[str, Any] = {"temperature": temperature, "wide": wide}
    student = Projection(
        student_hidden,
        student_weight,
        student_bias,
        student_softcap,
        student_scale,
        dtype=product_dtype(student_hidden),
        **settings,
    )
    sides = tuple(Projection(*t, dtype=product_dtype(t.hidden), **settings) for t in teachers)
    mixture: Any = MixtureProjection(sides, weights, shared)
    problem = Problem(student, mixture, targets, shared, temperature, divergence_of(divergence, jsd_beta))
    return fused_loss(problem, valid, Weights(1.0 - alpha, alpha * temperature**2), tile_bytes)


class MixtureRows(NamedTuple):
    """A tile of R tokens: each teacher's states [R, H_i] and log w_i - lse_i, [R], -inf where it has no weight."""

    hidden: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]


@dataclass(frozen=True)
class MixtureProjection:
    """Several teachers in the place of a `Projection`: its "logits" are the mixture's log-probabilities.

    Attributes:
        sides: The M teachers' heads, of one temperature.
        weights: [N, M]; see `mixture_distillation_loss`.
        vocabulary: Rows [0, vocabulary) over which each of them is normalised.
    """

    sides: tuple[Projection, ...]
    weights: Tensor
    vocabulary: int

    @property
    def rules_out(self) -> bool:
        """Whether a log-probability may be -inf."""
        return any(side.rules_out for side in self.sides)

    def tensors(self) -> tuple[None, None, None]:
        """Return nothing for autograd to keep: what teachers say has no gradient and stays with this object."""
        return None, None, None

    def with_tensors(self, *_: Any) -> MixtureProjection:
        """Return itself; see `tensors`."""
        return self

    def kernel_head(self, plan: KernelPlan, columns: int) -> MixtureHead:
        """Return the mixture over the first `columns` as the kernels of a GPU read it."""
        from .fused.gpu_pass import MixtureHead

        return MixtureHead(self, plan, columns)

    def kernel_room(self, columns: int) -> int:
        """Return how many numbers a row takes: the mixture, and one teacher's logits at a time."""
        return padded(columns) + max(side.kernel_room(columns) for side in self.sides)

    def rows(self, index: slice | Tensor) -> MixtureRows:
        """Return a tile of tokens, after a pass over each teacher's vocabulary for its log-normalisers."""
        hidden = tuple(side.rows(index) for side in self.sides)
        weights = self.weights[index].to(self.sides[0].wide)
        log_weights = (weights / weights.sum(1, keepdim=True)).log().unbind(1)  # -inf for a weight of 0
        shifts = (
            log_w - self._log_normalizer(side, rows)
            for side, rows, log_w in zip(self.sides, hidden, log_weights, strict=True)
        )
        return MixtureRows(hidden, tuple(shifts))

    def logits(self, rows: MixtureRows, vocabulary: slice, out: Tensor) -> Tensor:
        """Write log p of a tile over a block of the vocabulary into `out` [B, R]."""
        place = torch.empty_like(out)
        out.fill_(-torch.inf)
        for side, hidden, shift in zip(self.sides, rows.hidden, rows.shifts, strict=True):
            torch.logaddexp(out, side.logits(hidden, vocabulary, out=place).add_(shift), out=out)
        return out

    def _log_normalizer(self, side: Projection, rows: Tensor) -> Tensor:
        """Return log sum_v exp(z(v)) of one teacher's tile, [R]."""
        total = torch.full((len(rows),), -torch.inf, dtype=side.wide, device=rows.device)
        for start in range(0, self.vocabulary, BLOCK):
            block = slice(start, min(start + BLOCK, self.vocabulary))
            place = torch.empty(block.stop - start, len(rows), dtype=side.wide, device=rows.device)
            total = torch.logaddexp(total, side.logits(rows, block, out=place).logsumexp(0))
        return total


def _check(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    student_bias: Tensor | None,
    targets: Tensor,
    teachers: Sequence[TeacherSide],
    weights: Tensor,
    alpha: float,
    vocabulary: int | None,
) -> int:
    """Return the shared rows, or raise ValueError where the arguments do not fit together."""
    if not teachers or alpha == 0:
        raise ValueError("a mixture takes an alpha above 0 and at least one teacher; else use fused_distillation_loss.")
    rows = check_head("student", student_hidden, student_weight, student_bias)
    theirs = []
    for teacher in teachers:
        check_targets(targets, student_hidden, teacher.hidden, alpha)
        theirs.append(check_head("teacher", teacher.hidden, teacher.weight, teacher.bias))
    if weights.shape != (len(targets), len(teachers)):
        raise ValueError(
            f"weights {tuple(weights.shape)} do not fit {len(targets)} tokens and {len(teachers)} teachers; pass "
            "[N, M] of them."
        )
    # a GPU is not waited for: there such weights make the loss NaN
    if weights.device.type == "cpu" and not bool(
        ((weights >= 0) & weights.isfinite()).all() and (weights.sum(1) > 0).all()
    ):
        raise ValueError("weights must be finite and at least 0, with one above 0 at every token.")
    return shared_vocabulary(vocabulary, rows, min(theirs))
