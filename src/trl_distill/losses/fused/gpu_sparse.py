"""The kernels of the loss on sparse targets, launched on a tile: a few known tokens of a row against the student."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .gpu import Rows
from .tile_plan import CHUNKS, KernelPlan
from .triton_sparse import ROOM, pick_kernel, tail_finish_kernel, tail_sums_kernel

if TYPE_CHECKING:
    from .sparse_tile import SparseProblem

Tensor = torch.Tensor
WARPS = 4


class SparsePass:
    """Values and gradient of tiles against what is known of a teacher's distributions."""

    def __init__(self, problem: SparseProblem, plan: KernelPlan) -> None:
        wide, known = problem.student.wide, problem.known
        self.plan, self.vocabulary = plan, problem.vocabulary
        self.is_owned = problem.student.weight is not None  # logits that the caller has made are not written to
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
        head = {"SCALE_S": own.scale, "CAP_S": own.softcap}
        most = {"K": 1 << (k - 1).bit_length()}
        how = {**head, "ONE": own.temperature == 1, "BLOCK": self.plan.block, "num_warps": WARPS}
        ids, temperature = self.ids[span], float(own.temperature)
        pick_kernel[(tokens,)](
            *(place, place.stride(0), own.readable, own.bias, self.vocabulary, rows.counted, ids, k, self.picked),
            **head, **most, num_warps=WARPS,
        )  # fmt: skip
        chunks, columns = self.plan.chunks(tokens, own.size)
        sums = rows.values.new_empty(tokens, chunks, int(ROOM))
        model = (place, place.stride(0), own.readable, own.size, own.bias, self.vocabulary)
        tail_sums_kernel[(tokens, chunks)](*model, rows.counted, sums, columns, temperature, **how)
        of_rows = (None if of_row is None else of_row[span] for of_row in (self.tail, self.negentropy))
        tail_finish_kernel[(tokens, 1 if rows.gradient is None else chunks)](
            *(*model, rows.labels, rows.counted, rows.weight_ce, rows.weight_kl, rows.values, rows.values.stride(0)),
            *(rows.gradient, 0 if rows.gradient is None else rows.gradient.stride(0)),
            *(ids, k, self.picked, self.probs[span], *of_rows, sums, chunks, columns, temperature),
            MOST=CHUNKS, **most, **how,
        )  # fmt: skip
