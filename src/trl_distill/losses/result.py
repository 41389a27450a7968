"""The result of every distillation loss, and its precision."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DistillationLoss(NamedTuple):
    """The loss of N tokens; sums run over the rows whose label is not `ignore_index`.

    Attributes:
        ce: [N] cross-entropy in nats over the student's full vocabulary, 0 where ignored.
        kl: [N] the chosen divergence at temperature T in nats, without the factor T^2, 0 where ignored.
        entropy: Sum of the student's entropy at T = 1 in nats; not differentiable.
        top1_agreement: Number of rows in which teacher and student rank the same shared token first.
        top1_correct: Number of rows in which the student ranks the label first.
        loss: Sum of alpha T^2 kl + (1 - alpha) ce.
    """

    ce: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor
    top1_agreement: torch.Tensor
    top1_correct: torch.Tensor
    loss: torch.Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of logits, sums and accumulators for inputs of a precision."""
    return torch.float64 if dtype == torch.float64 else torch.float32
