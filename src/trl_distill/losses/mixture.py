"""The loss against a weighted mixture of several teachers' distributions, exact for every divergence.

The mixture is of the softened distributions; see `MixtureProjection` for what a tile is given of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .checks import check_head, check_labels, shared_vocabulary, valid_rows
from .fused.autograd import fused_loss
from .fused.problem import Problem
from .fused.projection import MixtureProjection, projection_of
from .lm_head import ModelSide
from .reference import loss_from_logits, mixture_logits
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings

Tensor = torch.Tensor


def mixture_loss(
    student: ModelSide,
    teachers: Sequence[ModelSide],
    weights: Tensor,
    labels: Tensor,
    settings: LossSettings,
    *,
    vocabulary: int | None = None,
) -> DistillationLoss:
    """Sum of alpha T^2 D(sum_i w_i p_i, student_T) + (1 - alpha) CE over N tokens, p_i teacher i softened by T.

    Precision and gradients are those of `fused_distillation_loss`. "fused" needs two blocks of scratch beyond
    `tile_bytes`.

    Args:
        student: At N tokens.
        teachers: M models of any widths, at the same.
        weights: [N, M], at least 0, each row with a sum above 0; rows are normalised. Hidden states of a token at which
            a teacher's weight is 0 are ignored, as long as they are finite.
        labels: [N] int64; rows of `ignore_index` are left out.
        settings: Loss settings, with alpha above 0.
        vocabulary: Rows [0, vocabulary) that all share and are renormalised to; None is the smallest V.

    Raises:
        ValueError: Arguments that do not fit together; the sentence names them.
    """
    _check_teachers(teachers, weights, labels, settings)
    rows = check_head("student", student)
    for teacher in teachers:
        check_labels(labels, student.hidden, teacher.hidden)
    shared = shared_vocabulary(vocabulary, rows, min(check_head("teacher", teacher) for teacher in teachers))
    valid = valid_rows(labels, student, settings)
    if settings.impl == "plain":
        logits = [teacher.logits().detach() for teacher in teachers]
        mixed = mixture_logits(logits, weights, temperature=settings.temperature, vocabulary=shared)
        return loss_from_logits(student.logits(), mixed, labels, shared, settings)
    wide = wide_dtype(student.hidden.dtype)
    sides = tuple(projection_of(teacher, settings, wide) for teacher in teachers)
    mixture = MixtureProjection(sides, weights, shared)
    own = projection_of(student, settings, wide)
    return fused_loss(Problem(own, labels, settings, mixture, vocabulary=shared), valid)


def _check_teachers(teachers: Sequence[ModelSide], weights: Tensor, labels: Tensor, settings: LossSettings) -> None:
    """Raise ValueError unless there are teachers, and weights of them at N tokens that can be normalised."""
    if not teachers or settings.alpha == 0:
        raise ValueError("a mixture takes an alpha above 0 and at least one teacher; else use fused_distillation_loss.")
    if weights.shape != (len(labels), len(teachers)):
        raise ValueError(
            f"weights {tuple(weights.shape)} do not fit {len(labels)} tokens and {len(teachers)} teachers; pass "
            "[N, M] of them."
        )
    # a GPU is not waited for: there such weights make the loss NaN
    if weights.device.type == "cpu" and not bool(
        ((weights >= 0) & weights.isfinite()).all() and (weights.sum(1) > 0).all()
    ):
        raise ValueError("weights must be finite and at least 0, with one above 0 at every token.")
