"""The loss on a GPU: products by cuBLAS, everything else about logits in two passes of a Triton kernel.

A tile's logits of both models are projected into buffers that are made once. A kernel sums a row up for its values and
writes the gradient of its logits; that of several tiles is kept for one large product each for the gradients of the
hidden states and of the weight. Nothing waits for the GPU: rows that do not count are masked, not picked out.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from ..lm_head import LMHead
from ..result import DistillationLoss
from .problem import Problem
from .products import HALF, kept_dtype, multiply
from .projection import Projection
from .tile import Weights
from .tile_plan import KernelPlan, blocks, padded, plan_kernels

Tensor = torch.Tensor
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton runs its kernels on the CPU then
LEAST = 2**-10  # of the divergence's weight, for the cross-entropy's to be the one that gradients are divided by
SCALED = 2048  # numbers that a program multiplies
logger = logging.getLogger(__name__)


def uses_kernels(hidden: Tensor) -> bool:
    """Whether the kernels compute the loss of these hidden states, not the tiles of a CPU."""
    device = hidden.device
    if device.type == "cpu":
        return INTERPRETED and importlib.util.find_spec("triton") is not None
    return device.type == "cuda" and hidden.dtype != torch.float64 and _has_kernels(device)


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    """Whether Triton is there and knows the GPU; says once if it is not."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (7, 0):
        missing = "Triton's kernels are for NVIDIA GPUs of compute capability 7.0 and later"
    elif importlib.util.find_spec("triton") is None:
        missing = "triton is not installed (pip install triton)"
    else:
        return True
    logger.warning("The distillation loss runs on %s without its kernels, several times slower: %s.", device, missing)
    return False


class Logits(NamedTuple):
    """A tile's numbers of one model as the kernels take them, and what makes logits of them.

    Attributes:
        place: [R, >= size], columns contiguous: hidden @ weight.T.
        size: Columns that count.
        readable: Columns that lie in memory.
        head: Bias, softcap and scale.
        temperature: T, by which the logits are divided for the divergence.
    """

    place: Tensor
    size: int
    readable: int
    head: LMHead
    temperature: float

    @property
    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """A kernel's arguments for a model: its numbers, their stride, both counts of columns, and the bias."""
        return self.place, self.place.stride(0), self.readable, self.size, self.head.bias


class Rows(NamedTuple):
    """A tile of R tokens, as a kernel takes it.

    Attributes:
        span: Its place among the N tokens.
        student: Its logits.
        labels: [R] int64.
        counted: [R] bool, the tokens that count.
        weight_ce: [R], of the cross-entropy in loss and gradient, 0 for a token that does not count.
        weight_kl: [R], of the divergence.
        values: [6, R] for cross-entropy, divergence, entropy, agreement, correctness and loss; zeros.
        gradient: [R, >= V] for the gradient of hidden @ weight.T over the scale, without content; None if not wanted.
    """

    span: slice
    student: Logits
    labels: Tensor
    counted: Tensor
    weight_ce: Tensor
    weight_kl: Tensor
    values: Tensor
    gradient: Tensor | None

    @property
    def arguments(self) -> tuple[Tensor | int | None, ...]:
        """A kernel's other arguments for a tile: labels to values, and the gradient with its stride."""
        of_tokens = self.labels, self.counted, self.weight_ce, self.weight_kl, self.values, self.values.stride(0)
        return (*of_tokens, self.gradient, 0 if self.gradient is None else self.gradient.stride(0))


KernelPass = Callable[[Rows], None]  # writes a tile's values and gradient, compared with a kind of teacher


class KernelHead:
    """One model's head: its weight as a factor of products, and room for a tile's logits."""

    def __init__(
        self, side: Projection, plan: KernelPlan, columns: int | None = None, place: Tensor | None = None
    ) -> None:
        """Use the head's first `columns`, all of them by default; `place` is another head's room to share."""
        self.side, self.columns = side, side.vocabulary_rows if columns is None else columns
        head = side.head
        self.head = head if head.bias is None else replace(head, bias=head.bias.contiguous())
        self.weight = None if head.weight is None else head.weight[: self.columns].to(side.dtype)
        if head.weight is not None and place is None:
            place = torch.empty(plan.rows, padded(self.columns), dtype=side.wide, device=side.hidden.device)
        self.place = place

    def factor(self, span: slice) -> Tensor:
        return self.side.hidden[span].to(self.side.dtype)

    def logits(self, span: slice) -> Logits:
        side = self.side
        if self.weight is None or self.place is None:
            place = side.hidden[span] if side.hidden.stride(1) == 1 else side.hidden[span].contiguous()
            readable = side.vocabulary_rows
        else:
            place = self.place[: span.stop - span.start]
            readable = place.shape[1]
            multiply(self.factor(span), self.weight.t(), place[:, : self.columns])
        return Logits(place, self.columns, readable, self.head, side.temperature)


def plan_call(problem: Problem, wanted: tuple[bool, ...]) -> KernelPlan:
    """Choose the tiles of a problem."""
    student, weight = problem.student, problem.student.head.weight
    own = 0 if weight is None else padded(student.vocabulary_rows)
    return plan_kernels(
        len(problem.labels),
        student.vocabulary_rows,
        logits=own + problem.kernel_room(),
        width=0 if weight is None else weight.shape[1],
        itemsize=student.dtype.itemsize,
        trains_weight=weight is not None and wanted[1],
        accumulates=weight is not None and weight.dtype in HALF,
        processors=_processors(student.hidden.device),
        tile_bytes=problem.settings.tile_bytes,
    )


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def scale(numbers: Tensor, factor: Tensor) -> None:
    """Multiply a gradient by a number on its device, in place; torch is four times slower if precisions differ."""
    if numbers.dtype == factor.dtype or not numbers.is_contiguous() or numbers.numel() == 0:
        numbers.mul_(factor)
        return
    from .triton_kernels import scale_kernel

    with torch.cuda.device_of(numbers):
        scale_kernel[(-(-numbers.numel() // SCALED),)](numbers, numbers.numel(), factor, BLOCK=SCALED)


def compute(
    problem: Problem,
    counted: Tensor,
    weights: Weights,
    plan: KernelPlan,
    wanted: tuple[bool, ...],
    kernels: KernelPass,
) -> tuple[DistillationLoss, tuple[Tensor | None, ...]]:
    """Return the loss of the tokens that count, [N] bool, and its gradients; `wanted` says which of the three."""
    student, tokens = problem.student, len(problem.labels)
    with torch.cuda.device_of(student.hidden), torch.autocast(student.hidden.device.type, enabled=False):
        values = torch.zeros(6, tokens, dtype=student.wide, device=student.hidden.device)
        labels = problem.labels.contiguous()  # as kernels read them
        ce, kl, unit = _scaled(weights, student, counted, values[0])
        head = KernelHead(student, plan)
        gradients = _Gradients(head, counted, unit, plan, wanted)
        for group in blocks(0, tokens, plan.group):
            for span in blocks(group.start, group.stop, plan.rows):
                kernels(
                    Rows(
                        *(span, head.logits(span), labels[span], counted[span]),
                        *(ce[span], kl[span], values[:, span], gradients.of_logits(group, span)),
                    )
                )
            gradients.multiply(group)
        entropy, agreement, correct, loss = values[2:].sum(1).unbind()
        outcome = DistillationLoss(values[0], values[1], entropy, agreement, correct, loss * unit)
        return outcome, gradients.finished()


def _scaled(
    weights: Weights, student: Projection, counted: Tensor, like: Tensor
) -> tuple[Tensor, Tensor, float | Tensor]:
    """Return the weights of both terms over a unit, [N], and that unit; tokens that do not count have a weight of 0.

    The unit keeps the gradient of logits in the range in which half precision is most exact.
    """
    typical = weights.ce if weights.typical_ce is None else weights.typical_ce
    ce, kl = (torch.where(counted, _as_tensor(like, w), 0.0) for w in (weights.ce, weights.kl))
    unit: float | Tensor
    if student.head.weight is None:
        unit = 1 / student.head.scale  # the kernels write the gradient of `hidden` itself
    elif isinstance(typical, Tensor) or isinstance(weights.kl, Tensor):
        unit = torch.maximum(ce.abs(), kl.abs()).amax() if len(counted) else like.new_ones(())
        unit = unit.masked_fill(unit == 0, 1.0)
    else:
        of_logits = weights.kl / student.temperature
        unit = typical if typical > LEAST * of_logits else of_logits
    return ce / unit, kl / unit, unit


def _as_tensor(like: Tensor, weight: float | Tensor) -> Tensor:
    """Return a weight as a tensor; a number is written by the device, which a copy would wait for."""
    return weight.to(like) if isinstance(weight, Tensor) else like.new_full((), weight)


class _Gradients:
    """The gradients that are wanted, each in float32 but for a weight's that a single product writes."""

    def __init__(
        self, head: KernelHead, counted: Tensor, unit: float | Tensor, plan: KernelPlan, wanted: tuple[bool, ...]
    ) -> None:
        side, own, tokens = head.side, head.head, len(counted)
        self.head, self.counted, self.unit = head, counted, unit
        self.alpha = own.scale * unit if isinstance(unit, float) else own.scale
        self.hidden = self.weight = self.bias = self.place = None
        empty = partial(torch.empty, device=counted.device)
        dtype = side.hidden.dtype if own.weight is None else side.dtype
        if any(wanted):
            rows = min(plan.group, tokens)
            room = padded(side.vocabulary_rows)
            if own.weight is None and wanted[0]:
                rows, room = tokens, side.vocabulary_rows
            self.place = empty(rows, room, dtype=dtype)
        if wanted[0]:
            self.hidden = self.place if own.weight is None else empty(side.hidden.shape, dtype=side.wide)
        if wanted[1] and own.weight is not None:
            kept = side.wide if tokens > plan.group else kept_dtype(own.weight.dtype, side.wide)
            self.weight = empty(own.weight.shape, dtype=kept) if tokens else torch.zeros_like(own.weight)
        if wanted[2] and own.bias is not None:
            self.bias = torch.zeros_like(own.bias, dtype=side.wide)

    def of_logits(self, group: slice, span: slice) -> Tensor | None:
        if self.place is None:
            return None
        first = 0 if self.place is self.hidden else group.start
        return self.place[span.start - first : span.stop - first]

    def multiply(self, group: slice) -> None:
        of_logits = self.of_logits(group, group)
        if of_logits is None:
            return
        of_logits = of_logits[:, : self.head.columns]
        if self.hidden is not None and self.head.weight is not None:
            multiply(of_logits, self.head.weight, self.hidden[group], alpha=self.alpha)
        if self.weight is not None:
            # the hidden states of a token that does not count may be NaN
            factor = self.head.factor(group).masked_fill(~self.counted[group, None], 0.0)
            multiply(of_logits.t(), factor, self.weight, alpha=self.alpha, add=group.start > 0)
        if self.bias is not None:
            ones = of_logits.new_ones(1, len(of_logits))
            multiply(ones, of_logits, self.bias[None], alpha=self.alpha, add=True)

    def finished(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias."""
        del self.place
        if isinstance(self.unit, Tensor):
            for gradient in (self.hidden, self.weight, self.bias):
                if gradient is not None:
                    scale(gradient, self.unit)
        return self.hidden, self.weight, self.bias
