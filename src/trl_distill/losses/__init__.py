"""The distillation losses, each with two implementations that share no formula.

`impl="fused"` projects tiles of tokens and forms the gradient in the same pass, on a GPU by kernels (`fused.gpu`) and
elsewhere by torch's operations (`fused.tile`); `impl="plain"` holds all logits (`reference`).
"""

from __future__ import annotations

from .checks import check_settings, check_sparse_divergence
from .dense import fused_distillation_loss
from .lm_head import LMHead, ModelSide
from .mixture import mixture_loss
from .reference import Matched, cross_divergence_from_logits, distillation_loss_from_logits, divergence, mixture_logits
from .result import DistillationLoss
from .settings import LossSettings
from .sparse import SampledTokens, TopKTokens, sparse_loss

__all__ = [
    "DistillationLoss",
    "LMHead",
    "LossSettings",
    "Matched",
    "ModelSide",
    "SampledTokens",
    "TopKTokens",
    "check_settings",
    "check_sparse_divergence",
    "cross_divergence_from_logits",
    "distillation_loss_from_logits",
    "divergence",
    "fused_distillation_loss",
    "mixture_logits",
    "mixture_loss",
    "sparse_loss",
]
