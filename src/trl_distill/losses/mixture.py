"""The loss against a weighted mixture of several teachers' distributions, exact for every divergence.

The mixture is of the softened distributions; see `MixtureProjection` for what a tile is given of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .checks import check_head, check_labels, check_settings, shared_vocabulary, valid_rows
from .fused.autograd import fused_loss
from .fused.problem import Problem
from .fused.projection import MixtureProjection, projection_of
from .lm_head import LMHead, ModelSide
from .reference import loss_from_logits, mixture_logits
from .result import DistillationLoss, wide_dtype
from .settings import LossSettings

Tensor = torch.Tensor


def mixture_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor | None,
    targets: Tensor,
    *,
    teachers: Sequence[ModelSide],
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

    Precision, gradients and the arguments that both have are those of `fused_distillation_loss`, with alpha above 0.
    `teachers` are M models of any widths, `weights` [N, M] are at least 0, each row with a sum above 0; rows are
    normalised. Hidden states of a token at which a teacher's weight is 0 are ignored, as long as they are finite.
    `vocabulary` is the rows that all share and are renormalised to, the smallest V by default. "fused" needs two blocks
    of scratch beyond `tile_bytes`.

    Raises:
        ValueError: Arguments that do not fit together or lie outside what is accepted; the sentence names them.
    """
    settings = LossSettings(alpha, temperature, divergence, jsd_beta, impl, tile_bytes, ignore_index)
    check_settings(settings)
    student = ModelSide(student_hidden, LMHead(student_weight, student_bias, student_softcap, student_scale))
    return mixture_loss(student, teachers, weights, targets, settings, vocabulary=vocabulary)


def mixture_loss(
    student: ModelSide,
    teachers: Sequence[ModelSide],
    weights: Tensor,
    labels: Tensor,
    settings: LossSettings,
    *,
    vocabulary: int | None = None,
) -> DistillationLoss:
    """As `mixture_distillation_loss`, under settings that are checked.

    Args:
        student: At N tokens.
        teachers: The M teachers, at the same.
        weights: [N, M].
        labels: [N] int64.
        settings: Of the loss.
        vocabulary: Rows that all share; None is the smallest V.
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
