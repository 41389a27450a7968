"""What a distillation loss returns, and the checks of what it is given, shared by every implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config.choices import DIVERGENCES, LOSS_IMPLEMENTATIONS


def vocabulary_rows(hidden: torch.Tensor, weight: torch.Tensor | None) -> int:
    """Return V of a weight [V, H]; of logits [N, V] if there is none."""
    return hidden.shape[1] if weight is None else len(weight)


class DistillationLoss(NamedTuple):
    """The outcome for N tokens; sums run over the rows whose target is not `ignore_index`.

    Attributes:
        ce: [N] cross-entropy in nats over the student's full vocabulary, 0 where ignored.
        kl: [N] the chosen divergence at temperature T in nats, without the factor T^2, 0 where ignored.
        entropy: Sum of the student's entropy at T = 1 in nats; not differentiable.
        top1_agreement: Number of rows in which teacher and student rank the same shared token first.
        top1_correct: Number of rows in which the student ranks the target first.
        loss: Sum of alpha T^2 kl + (1 - alpha) ce.
    """

    ce: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor
    top1_agreement: torch.Tensor
    top1_correct: torch.Tensor
    loss: torch.Tensor


def check_divergence(kind: str, temperature: float, jsd_beta: float) -> None:
    """Raise ValueError for an unknown divergence, T <= 0, or a beta at which the JSD is 0 whatever the logits."""
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence {kind!r} is unknown; choose one of {', '.join(DIVERGENCES)}.")
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be greater than 0.")
    if kind == "jsd" and not 0 < jsd_beta < 1:
        raise ValueError(
            f"jsd_beta {jsd_beta} must lie strictly between 0 and 1: at both ends the divergence is 0 whatever the "
            'logits; choose divergence "forward_kl" for what TRL computes at 0, "reverse_kl" at 1.'
        )


def check_settings(alpha: float, temperature: float, kind: str, jsd_beta: float) -> None:
    """Raise ValueError for settings outside what the loss accepts."""
    check_divergence(kind, temperature, jsd_beta)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} must lie between 0 (cross-entropy only) and 1 (divergence only).")


def check_impl(impl: str) -> None:
    """Raise ValueError for an unknown implementation."""
    if impl not in LOSS_IMPLEMENTATIONS:
        raise ValueError(f"impl {impl!r} is unknown; choose one of {', '.join(LOSS_IMPLEMENTATIONS)}.")


def check_targets(
    targets: torch.Tensor,
    student: torch.Tensor,
    teacher: torch.Tensor | None,
    alpha: float,
) -> None:
    """Raise ValueError unless targets [N], student [N, *] and teacher [N, *] describe the same N tokens."""
    if student.dim() != 2 or targets.shape != student.shape[:1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} and the student's rows {tuple(student.shape)} must be [N] and [N, ...]; "
            "flatten batch and sequence, and pass one target per row."
        )
    if targets.is_floating_point():
        raise ValueError(f"targets are {targets.dtype}; pass token ids (int64).")
    if teacher is None and alpha > 0:
        raise ValueError(f"alpha {alpha} weighs a divergence, but no teacher was given; pass one or set alpha to 0.")
    if teacher is not None and (teacher.dim() != 2 or len(teacher) != len(student)):
        raise ValueError(
            f"the teacher's rows {tuple(teacher.shape)} and the student's {tuple(student.shape)} must be [N, ...] of "
            "the same N tokens; select the completion's rows of both."
        )


def shared_vocabulary(vocabulary: int | None, student: int, teacher: int) -> int:
    """Return the number of rows both vocabularies share; ValueError where more are asked for than there are."""
    most = min(student, teacher)
    if vocabulary is None:
        return most
    if not 0 < vocabulary <= most:
        raise ValueError(
            f"vocabulary {vocabulary} must lie between 1 and {most}, the smaller of the student's {student} and the "
            f"teacher's {teacher} rows."
        )
    return vocabulary


def check_head(side: str, hidden: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> int:
    """Return the rows V of a side's head, or raise ValueError if it does not fit its hidden states [N, H].

    Without a weight [V, H] the hidden states are logits [N, V].
    """
    rows = vocabulary_rows(hidden, weight)
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != hidden.shape[1]):
        raise ValueError(
            f"{side}_weight {tuple(weight.shape)} does not fit {side}_hidden {tuple(hidden.shape)}; pass [V, H] for "
            "hidden states [N, H]."
        )
    if bias is not None and bias.shape != (rows,):
        against = f"logits {tuple(hidden.shape)}" if weight is None else f"{side}_weight {tuple(weight.shape)}"
        raise ValueError(f"{side}_bias {tuple(bias.shape)} does not fit {against}; pass [V].")
    return rows


def valid_rows(
    targets: torch.Tensor, ignore_index: int, vocabulary: int, *, masks: bool = False
) -> torch.Tensor | None:
    """Return the indices [n] of the tokens that count, None where all do; ValueError for an id that is no row.

    With `masks` it is a mask [N], for kernels: a GPU is not waited for, so an id that is no row makes the loss NaN.
    """
    if masks and targets.device.type != "cpu":
        return targets != ignore_index
    valid = (targets != ignore_index).nonzero()[:, 0]
    counted = targets[valid]
    if len(counted):
        low, high = torch.stack(counted.aminmax()).tolist()
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise ValueError(
                f"targets hold the id {wrong}, but the student's head has {vocabulary} rows; mark tokens to leave out "
                f"by {ignore_index}."
            )
    if masks:
        return targets != ignore_index
    return None if len(counted) == len(targets) else valid
