"""The checks of what a distillation loss is given, shared by all losses and implementations."""

from __future__ import annotations

import torch

from ..config.choices import DIVERGENCES, LOSS_IMPLEMENTATIONS
from .fused.gpu import uses_kernels
from .lm_head import ModelSide
from .settings import LossSettings


def check_settings(settings: LossSettings) -> None:
    """Raise ValueError for settings outside what a loss accepts, such as a beta at which the JSD is always 0."""
    kind, beta = settings.divergence, settings.jsd_beta
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence {kind!r} is unknown; choose one of {', '.join(DIVERGENCES)}.")
    if not settings.temperature > 0:
        raise ValueError(f"temperature {settings.temperature} must be greater than 0.")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"jsd_beta {beta} must lie strictly between 0 and 1: at both ends the divergence is 0 whatever the "
            'logits; choose divergence "forward_kl" for what TRL computes at 0, "reverse_kl" at 1.'
        )
    if not 0 <= settings.alpha <= 1:
        raise ValueError(f"alpha {settings.alpha} must lie between 0 (cross-entropy only) and 1 (divergence only).")
    if settings.impl not in LOSS_IMPLEMENTATIONS:
        raise ValueError(f"impl {settings.impl!r} is unknown; choose one of {', '.join(LOSS_IMPLEMENTATIONS)}.")


def check_labels(labels: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor | None = None) -> None:
    """Raise ValueError unless labels [N], student [N, *] and teacher [N, *] describe the same N tokens."""
    if student.dim() != 2 or labels.shape != student.shape[:1]:
        raise ValueError(
            f"targets {tuple(labels.shape)} and the student's rows {tuple(student.shape)} must be [N] and [N, ...]; "
            "flatten batch and sequence, and pass one target per row."
        )
    if labels.is_floating_point():
        raise ValueError(f"targets are {labels.dtype}; pass token ids (int64).")
    if teacher is not None and (teacher.dim() != 2 or len(teacher) != len(student)):
        raise ValueError(
            f"the teacher's rows {tuple(teacher.shape)} and the student's {tuple(student.shape)} must be [N, ...] of "
            "the same N tokens; select the completion's rows of both."
        )


def check_has_teacher(alpha: float, teacher: object) -> None:
    """Raise ValueError for a divergence with a weight but without a teacher."""
    if teacher is None and alpha > 0:
        raise ValueError(f"alpha {alpha} weighs a divergence, but no teacher was given; pass one or set alpha to 0.")


def check_sparse_divergence(divergence: str, kind: str) -> None:
    """Raise ValueError if a signal of a kind, "topk" or "sample", has too few tokens for a divergence."""
    if divergence != "forward_kl":
        raise ValueError(
            f"divergence {divergence!r} needs the teacher's probability of every token, and targets of the kind {kind} "
            'have that of a few; choose "forward_kl", or targets of the kind hidden.'
        )


def check_head(name: str, side: ModelSide) -> int:
    """Return the rows V of a side's head, or raise ValueError if it does not fit its hidden states [N, H]."""
    hidden, weight, bias = side.tensors
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != hidden.shape[1]):
        raise ValueError(
            f"{name}_weight {tuple(weight.shape)} does not fit {name}_hidden {tuple(hidden.shape)}; pass [V, H] for "
            "hidden states [N, H]."
        )
    if bias is not None and bias.shape != (side.vocabulary_rows,):
        against = f"logits {tuple(hidden.shape)}" if weight is None else f"{name}_weight {tuple(weight.shape)}"
        raise ValueError(f"{name}_bias {tuple(bias.shape)} does not fit {against}; pass [V].")
    return side.vocabulary_rows


def shared_vocabulary(vocabulary: int | None, student: int, teacher: int) -> int:
    """Return the number of rows both vocabularies share; ValueError if more are asked for than there are."""
    most = min(student, teacher)
    if vocabulary is None:
        return most
    if not 0 < vocabulary <= most:
        raise ValueError(
            f"vocabulary {vocabulary} must lie between 1 and {most}, the smaller of the student's {student} and the "
            f"teacher's {teacher} rows."
        )
    return vocabulary


def valid_rows(labels: torch.Tensor, student: ModelSide, settings: LossSettings) -> torch.Tensor | None:
    """Return the indices [n] of the tokens that count, None if all do; ValueError for an id that is no row.

    For the kernels it is a mask [N]: a GPU is not waited for, so an id that is no row makes the loss NaN.
    """
    kept = labels != settings.ignore_index
    masks = settings.impl == "fused" and uses_kernels(student.hidden)
    if masks and labels.device.type != "cpu":
        return kept
    valid = kept.nonzero()[:, 0]
    counted = labels[valid]
    if len(counted):
        low, high = torch.stack(counted.aminmax()).tolist()
        if low < 0 or high >= student.vocabulary_rows:
            wrong = low if low < 0 else high
            raise ValueError(
                f"targets hold the id {wrong}, but the student's head has {student.vocabulary_rows} rows; mark tokens "
                f"to leave out by {settings.ignore_index}."
            )
    if masks:
        return kept
    return None if len(counted) == len(labels) else valid
