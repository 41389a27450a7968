"""The distillation loss from hidden states and heads, without the logits of a whole batch ever in memory.

Tokens are computed in tiles. A tile's logits give the values in one pass over the vocabulary and the gradient in a
second, both in the forward; the backward multiplies by the upstream scalar. If a tile's logits are too large to keep
between the passes they are projected a second time, which is cheaper than tiles of few rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..result import DistillationLoss
from . import gpu
from .problem import Problem
from .products import kept_dtype
from .projection import Projection
from .sparse_tile import SparseTile
from .tile import Buffers, Gradients, Tile, Weights
from .tile_plan import KernelPlan, Plan, blocks, plan_tiles

Tensor = torch.Tensor


def fused_loss(problem: Problem, valid: Tensor | None) -> DistillationLoss:
    """Compute the loss, differentiable in the student's three tensors.

    Args:
        problem: Both models' sides, the labels and the settings.
        valid: Indices [n] of the tokens that count; None is all of them, a mask [N] is for the kernels of a GPU.
    """
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in problem.student.tensors)
    plan: Plan | KernelPlan
    if valid is not None and valid.dtype == torch.bool:
        plan = gpu.plan_call(problem, wanted)
    else:
        compares = problem.teacher is not None
        plan = plan_tiles(
            len(problem.labels) if valid is None else len(valid),
            problem.student.vocabulary_rows,
            models=1 + compares,
            passes=1 + (compares and problem.settings.divergence == "jsd") + any(wanted),
            itemsize=problem.student.wide.itemsize,
            accelerator=problem.labels.device.type != "cpu",
            frozen=not wanted[1],
            tile_bytes=problem.settings.tile_bytes,
        )
    weights = Weights.of_loss(problem)
    return DistillationLoss(*_FusedLoss.apply(problem, weights, plan, wanted, valid, *problem.tensors))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        problem: Problem,
        weights: Weights,
        plan: Plan | KernelPlan,
        wanted: tuple[bool, ...],
        valid: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(valid, *tensors)
        ctx.set_materialize_grads(False)
        ctx.call = problem.with_tensors([None] * len(tensors)), weights, plan, wanted  # autograd keeps the tensors
        ctx.dtypes = [t.dtype if t is not None else None for t in tensors[:3]]
        outcome, ctx.stored = _compute(problem, valid, weights, plan, wanted)
        ctx.mark_non_differentiable(outcome.entropy, outcome.top1_agreement, outcome.top1_correct)
        return tuple(outcome)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, ce: Tensor | None, kl: Tensor | None, _1: None, _2: None, _3: None, loss: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        problem, weights, plan, wanted = ctx.call
        stored, ctx.stored = ctx.stored, None  # handed out once; a second backward computes them again
        factor = loss
        if ce is not None or kl is not None or stored is None:
            upstream = _upstream(weights, ce, kl, loss)
            factor = None if stored is None else _common_factor(upstream, weights)
            if factor is None:
                valid, *tensors = ctx.saved_tensors
                _, stored = _compute(problem.with_tensors(tensors), valid, upstream, plan, wanted)
        if factor is not None:
            scale = gpu.scale if isinstance(plan, KernelPlan) else Tensor.mul_
            for gradient in stored:
                if gradient is not None:
                    scale(gradient, factor)  # in place: there is no room for a second [V, H]
        own = (None if g is None else g.to(dtype) for g, dtype in zip(stored, ctx.dtypes, strict=True))
        return (*[None] * 5, *own, *[None] * (len(ctx.needs_input_grad) - 8))


def _compute(
    problem: Problem, valid: Tensor | None, weights: Weights, plan: Plan | KernelPlan, wanted: tuple[bool, ...]
) -> tuple[DistillationLoss, tuple[Tensor | None, ...]]:
    """Return the loss, and its gradients in the student's hidden states, weight and bias."""
    if isinstance(plan, KernelPlan):
        from .gpu_pass import DensePass, SparsePass  # they import triton

        assert valid is not None
        kernels = (DensePass if problem.known is None else SparsePass)(problem, plan)
        out, (hidden, weight, bias) = gpu.compute(problem, valid, weights, plan, wanted, kernels)
    else:
        out, (hidden, weight, bias) = _compute_tiles(problem, valid, weights, plan, wanted)
    student = problem.student
    if weight is not None and student.head.weight is not None:
        weight = weight.to(kept_dtype(student.head.weight.dtype, student.wide))
    return out, (hidden, weight, bias)


def _compute_tiles(
    problem: Problem, valid: Tensor | None, weights: Weights, plan: Plan, wanted: tuple[bool, ...]
) -> tuple[DistillationLoss, Gradients]:
    """As `_compute`, without kernels; the weight's gradient may be in a wider precision."""
    student, count = problem.student, len(problem.labels)
    tokens = count if valid is None else len(valid)
    ce = torch.zeros(count, dtype=student.wide, device=problem.labels.device)
    kl, sums = ce.clone(), ce.new_zeros(4)
    gradients = _empty_gradients(student, wanted, tiles=-(-tokens // plan.rows))
    kind = Tile if problem.known is None else SparseTile
    with torch.autocast(problem.labels.device.type, enabled=False):
        buffers = Buffers(plan, problem)
        for span in blocks(0, tokens, plan.rows):
            index = span if valid is None else valid[span]
            tile = kind(problem, plan, buffers, index)
            tile.measure()
            ce[index], kl[index], *counts = tile.values()
            own = weights.of(index, ce)
            sums += torch.stack([*(c.sum() for c in counts), _sum(own, ce[index], kl[index])])
            if any(wanted):
                tile.add_gradients(*own, gradients, first=span.start == 0)
    return DistillationLoss(ce, kl, *sums.unbind()), gradients


def _empty_gradients(student: Projection, wanted: tuple[bool, ...], tiles: int) -> Gradients:
    """Return room for the gradients; wide, but for a weight gradient that a single tile writes at once."""
    hidden, weight, bias = (t if given else None for t, given in zip(student.tensors, wanted, strict=True))
    hidden, bias = (None if t is None else torch.zeros_like(t, dtype=student.wide) for t in (hidden, bias))
    if weight is not None:
        dtype = student.wide if tiles > 1 else kept_dtype(weight.dtype, student.wide)
        weight = (torch.empty_like if tiles else torch.zeros_like)(weight, dtype=dtype)
    return Gradients(hidden, weight, bias)


def _sum(weights: tuple[Tensor | None, Tensor | None], ce: Tensor, kl: Tensor) -> Tensor:
    """Return the loss of a tile."""
    zero = ce.new_zeros(())
    pairs = ((w, value) for w, value in zip(weights, (ce, kl), strict=True) if w is not None)
    return sum((w @ value.masked_fill(w == 0, 0.0) for w, value in pairs), zero)  # an infinite value may have none


def _upstream(weights: Weights, ce: Tensor | None, kl: Tensor | None, loss: Tensor | None) -> Weights:
    """Return the weight of every token's cross-entropy and divergence in what is differentiated."""
    through_ce, through_kl = (0.0, 0.0) if loss is None else (loss * weights.ce, loss * weights.kl)
    return Weights(through_ce + (0.0 if ce is None else ce), through_kl + (0.0 if kl is None else kl))


def _common_factor(upstream: Weights, weights: Weights) -> Tensor | None:
    """Return c if the upstream weights are c times those of the stored gradient, to rounding; else None."""
    if isinstance(weights.ce, torch.Tensor) or isinstance(weights.kl, torch.Tensor):
        return None
    if any(isinstance(u, Tensor) and u.device.type != "cpu" for u in (upstream.ce, upstream.kl)):
        return None  # a GPU is not waited for
    pairs = [(torch.as_tensor(u), w) for u, w in ((upstream.ce, weights.ce), (upstream.kl, weights.kl))]
    largest = max(pairs, key=lambda pair: pair[1])
    factor = largest[0].flatten()[:1] / largest[1]
    near = 8 * torch.finfo(factor.dtype).eps * factor.abs()
    if factor.numel() and all(((u - factor * w).abs() <= near * w).all() for u, w in pairs):
        return factor[0]
    return None
