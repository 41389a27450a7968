"""The kernels, launched on a tile: a teacher's logits, a mixture's, or a few known tokens against the student."""

from __future__ import annotations

import torch

from ...config.choices import DIVERGENCES
from ..lm_head import LOGITS
from .gpu import KernelHead, Logits, Rows
from .problem import Problem
from .projection import MixtureProjection
from .tile_plan import CHUNKS, KernelPlan, padded
from .triton_kernels import ROOM, mix_kernel, mixture_sums_kernel, row_kernel, sums_kernel
from .triton_sparse import ROOM as ROOM_OF_TAIL
from .triton_sparse import pick_kernel, tail_finish_kernel, tail_sums_kernel

Tensor = torch.Tensor
WARPS = 4
NO_MODEL = None, 0, 0, 0, None  # in the place of `Logits.arguments`


class DensePass:
    """Values and gradient of tiles against all of a teacher's logits, or without a teacher."""

    def __init__(self, problem: Problem, plan: KernelPlan) -> None:
        self.plan = plan
        self.teacher: KernelHead | MixtureHead | None = None
        if isinstance(problem.teacher, MixtureProjection):
            self.teacher = MixtureHead(problem.teacher, plan, problem.vocabulary)
        elif problem.teacher is not None:
            self.teacher = KernelHead(problem.teacher, plan, problem.vocabulary)
        self.kind = DIVERGENCES.index(problem.settings.divergence)
        self.beta = problem.settings.jsd_beta

    def __call__(self, rows: Rows) -> None:
        """Write values and gradient of a tile."""
        own, theirs = rows.student, self.teacher.logits(rows.span) if self.teacher else None
        tokens = len(rows.labels)
        models = (*own.arguments, *(NO_MODEL if theirs is None else theirs.arguments))
        head, temperature = (LOGITS, 1.0) if theirs is None else (theirs.head, theirs.temperature)
        temperatures = float(own.temperature), float(temperature)
        heads = {"SCALE_S": own.head.scale, "CAP_S": own.head.softcap, "SCALE_T": head.scale, "CAP_T": head.softcap}
        how = {**heads, "KIND": self.kind, "ONE": own.temperature == 1, "BLOCK": self.plan.block, "num_warps": WARPS}
        chunks, columns = self.plan.chunks(tokens, own.size)
        sums = None
        if chunks > 1:
            sums = rows.values.new_empty(tokens, chunks, int(ROOM))
            sums_kernel[(tokens, chunks)](*models, rows.counted, sums, columns, *temperatures, **how)
            if theirs is not None and DIVERGENCES[self.kind] == "jsd":
                jsd = {k: how[k] for k in (*heads, "BLOCK", "num_warps")}
                shared = (*models[:3], *models[4:])
                mixture_sums_kernel[(tokens, chunks)](
                    *shared, rows.counted, sums, columns, *temperatures, BETA=self.beta, MOST=CHUNKS, **jsd
                )
        row_kernel[(tokens, 1 if rows.gradient is None else chunks)](
            *models, *rows.arguments, sums, chunks, columns, *temperatures, BETA=self.beta, MOST=CHUNKS, **how
        )


class MixtureHead:
    """Several teachers' heads, whose "logits" are the log-probabilities of their mixture."""

    def __init__(self, mixture: MixtureProjection, plan: KernelPlan, columns: int) -> None:
        self.plan, self.columns = plan, columns
        hidden, wide = mixture.sides[0].hidden, mixture.sides[0].wide
        shape = (plan.rows, padded(columns))
        place = None
        if any(side.head.weight is not None for side in mixture.sides):
            place = torch.empty(shape, dtype=wide, device=hidden.device)
        self.heads = [KernelHead(side, plan, columns, place) for side in mixture.sides]
        self.mixed = torch.empty(shape, dtype=wide, device=hidden.device)
        weights = mixture.weights.to(wide)
        self.weights = (weights / weights.sum(1, keepdim=True)).t().contiguous()

    def logits(self, span: slice) -> Logits:
        mixed = self.mixed[: span.stop - span.start]
        for i, head in enumerate(self.heads):
            z = head.logits(span)
            mix_kernel[(len(mixed),)](
                *(*z.arguments, self.weights[i, span], mixed, mixed.stride(0), float(z.temperature)),
                SCALE=z.head.scale, CAP=z.head.softcap, FIRST=i == 0, BLOCK=self.plan.block, num_warps=WARPS,
            )  # fmt: skip
        return Logits(mixed, self.columns, mixed.shape[1], LOGITS, 1.0)


class SparsePass:
    """Values and gradient of tiles against the few known tokens of a teacher's distributions."""

    def __init__(self, problem: Problem, plan: KernelPlan) -> None:
        wide, known = problem.student.wide, problem.known
        assert known is not None
        self.plan, self.vocabulary = plan, problem.vocabulary
        self.is_owned = problem.student.head.weight is not None  # logits that the caller has made are not written to
        self.ids = known.token_ids.contiguous()
        self.probs = known.probs.to(wide).contiguous()
        self.tail, self.negentropy = (
            None if of_row is None else of_row.to(wide).contiguous() for of_row in (known.tail, known.negentropy)
        )
        self.picked = torch.empty(plan.rows, self.ids.shape[1], dtype=wide, device=self.ids.device)

    def __call__(self, rows: Rows) -> None:
        """Write values and gradient of a tile."""
        own, span, tokens, k = rows.student, rows.span, len(rows.labels), self.ids.shape[1]
        place = own.place if self.is_owned else own.place.clone()
        head = {"SCALE_S": own.head.scale, "CAP_S": own.head.softcap}
        most = {"K": 1 << (k - 1).bit_length()}
        how = {**head, "ONE": own.temperature == 1, "BLOCK": self.plan.block, "num_warps": WARPS}
        ids, temperature = self.ids[span], float(own.temperature)
        pick_kernel[(tokens,)](
            *(place, place.stride(0), own.readable, own.head.bias, self.vocabulary, rows.counted, ids, k, self.picked),
            **head, **most, num_warps=WARPS,
        )  # fmt: skip
        chunks, columns = self.plan.chunks(tokens, own.size)
        sums = rows.values.new_empty(tokens, chunks, int(ROOM_OF_TAIL))
        model = (*own._replace(place=place).arguments, self.vocabulary)
        tail_sums_kernel[(tokens, chunks)](*model, rows.counted, sums, columns, temperature, **how)
        of_rows = (None if of_row is None else of_row[span] for of_row in (self.tail, self.negentropy))
        tail_finish_kernel[(tokens, 1 if rows.gradient is None else chunks)](
            *(*model, *rows.arguments, ids, k, self.picked, self.probs[span], *of_rows),
            *(sums, chunks, columns, temperature),
            MOST=CHUNKS, **most, **how,
        )  # fmt: skip
