"""The kernels of the dense loss, launched on a tile: a teacher's head or a mixture of several against the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from .divergences import ForwardKL, JensenShannon, ReverseKL
from .gpu import Head, Logits, Rows
from .tile_plan import CHUNKS, KernelPlan, padded
from .triton_kernels import ROOM, finish_kernel, mix_kernel, mixture_sums_kernel, rows_kernel, sums_kernel

if TYPE_CHECKING:
    from ..mixture import MixtureProjection
    from .tile import Problem

Tensor = torch.Tensor
KINDS = (ForwardKL, ReverseKL, JensenShannon)  # as the kernels number them
WARPS = 4


class Teacher(Protocol):
    """What has logits of a tile."""

    def logits(self, span: slice) -> Logits:
        """Return them."""
        ...


class DensePass:
    """Values and gradient of tiles against all of a teacher's logits, or without a teacher."""

    def __init__(self, problem: Problem, plan: KernelPlan) -> None:
        self.plan = plan
        self.teacher: Teacher | None = None
        if problem.teacher:
            self.teacher = problem.teacher.kernel_head(plan, problem.vocabulary)
        self.kind = KINDS.index(type(problem.divergence))
        self.beta = problem.divergence.beta if isinstance(problem.divergence, JensenShannon) else 0.5

    def __call__(self, rows: Rows) -> None:
        """Write values and gradient of a tile."""
        own, theirs = rows.student, self.teacher.logits(rows.span) if self.teacher else None
        tokens = len(rows.labels)
        models: tuple[Any, ...] = (own.place, own.place.stride(0), own.readable, own.size, own.bias)
        heads: dict[str, Any] = {"SCALE_S": own.scale, "CAP_S": own.softcap, "SCALE_T": 1.0, "CAP_T": None}
        temperatures = [float(own.temperature), 1.0]
        if theirs is None:
            models = (*models, None, 0, 0, 0, None)
        else:
            models = (*models, theirs.place, theirs.place.stride(0), theirs.readable, theirs.size, theirs.bias)
            heads |= {"SCALE_T": theirs.scale, "CAP_T": theirs.softcap}
            temperatures[1] = float(theirs.temperature)
        gradient = (rows.gradient, 0 if rows.gradient is None else rows.gradient.stride(0))
        tile = (
            rows.labels,
            rows.counted,
            rows.weight_ce,
            rows.weight_kl,
            rows.values,
            rows.values.stride(0),
        )
        how = {**heads, "KIND": self.kind, "ONE": own.temperature == 1, "BLOCK": self.plan.block, "num_warps": WARPS}
        chunks, columns = self.plan.chunks(tokens, own.size)
        if chunks == 1:
            rows_kernel[(tokens,)](*models, *tile, *gradient, *temperatures, BETA=self.beta, **how)
            return
        sums = rows.values.new_empty(tokens, chunks, int(ROOM))
        grid = (tokens, chunks)
        sums_kernel[grid](*models, rows.counted, sums, columns, *temperatures, **how)
        if theirs is not None and self.kind == KINDS.index(JensenShannon):
            jsd = {k: how[k] for k in (*heads, "BLOCK", "num_warps")}
            shared = (*models[:3], *models[4:])
            mixture_sums_kernel[grid](
                *shared, rows.counted, sums, columns, *temperatures, BETA=self.beta, MOST=CHUNKS, **jsd
            )
        last = grid if rows.gradient is not None else (tokens, 1)
        finish_kernel[last](
            *models, *tile, *gradient, sums, chunks, columns, *temperatures, BETA=self.beta, MOST=CHUNKS, **how
        )


class MixtureHead:
    """Several teachers' heads, whose "logits" are the log-probabilities of their mixture."""

    def __init__(self, mixture: MixtureProjection, plan: KernelPlan, columns: int) -> None:
        self.plan, self.columns = plan, columns
        hidden, wide = mixture.sides[0].hidden, mixture.sides[0].wide
        shape = (plan.rows, padded(columns))
        place = None
        if any(side.weight is not None for side in mixture.sides):
            place = torch.empty(shape, dtype=wide, device=hidden.device)
        self.heads = [Head(side, plan, columns, place) for side in mixture.sides]
        self.mixed = torch.empty(shape, dtype=wide, device=hidden.device)
        weights = mixture.weights.to(wide)
        self.weights = (weights / weights.sum(1, keepdim=True)).t().contiguous()

    def logits(self, span: slice) -> Logits:
        """Mix a tile."""
        mixed = self.mixed[: span.stop - span.start]
        for i, head in enumerate(self.heads):
            z = head.logits(span)
            mix_kernel[(len(mixed),)](
                *(z.place, z.place.stride(0), z.readable, z.size, z.bias, self.weights[i, span]),
                *(mixed, mixed.stride(0), float(z.temperature)),
                SCALE=z.scale, CAP=z.softcap, FIRST=i == 0, BLOCK=self.plan.block, num_warps=WARPS,
            )  # fmt: skip
        return Logits(mixed, self.columns, mixed.shape[1], None, None, 1.0, 1.0)
