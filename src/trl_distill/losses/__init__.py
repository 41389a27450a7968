"""The distillation loss: one door, two implementations that share no formula.

`impl="fused"` projects tiles of tokens and forms the gradient in the same go, on a GPU by kernels (`gpu`) and elsewhere
by torch's operations (`tile`); `impl="plain"` holds all logits.
"""

from __future__ import annotations

from .cross_tokenizer import add_cross_divergence
from .cross_tokenizer_reference import Matched, cross_divergence_from_logits
from .dense import fused_distillation_loss
from .fused.sparse_tile import check_sparse_divergence
from .mixture import TeacherSide, mixture_distillation_loss
from .reference import (
    distillation_loss_from_logits,
    divergence,
    head_logits,
    mixture_logits,
    sampled_loss_from_logits,
    topk_loss_from_logits,
)
from .result import DistillationLoss
from .sampled import sampled_distillation_loss
from .sparse import topk_distillation_loss

__all__ = [
    "DistillationLoss",
    "Matched",
    "TeacherSide",
    "add_cross_divergence",
    "check_sparse_divergence",
    "cross_divergence_from_logits",
    "distillation_loss_from_logits",
    "divergence",
    "fused_distillation_loss",
    "head_logits",
    "mixture_distillation_loss",
    "mixture_logits",
    "sampled_distillation_loss",
    "sampled_loss_from_logits",
    "topk_distillation_loss",
    "topk_loss_from_logits",
]
