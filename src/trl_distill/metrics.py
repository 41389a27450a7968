"""Sums of a run's figures between two log lines, kept on the device and read once a line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .forward import CompletionOutput

SUMS = ("kl", "ce", "entropy", "top1_agreement", "top1_correct")


class DistillationMetrics:
    """Token-weighted means since the last log line, over all ranks.

    Each mean is the sum over completion tokens divided by their number, so that batch size, accumulation and the
    number of ranks do not change it.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self._since = time.perf_counter()
        self._seen = 0.0

    def add(self, output: CompletionOutput, tokens: torch.Tensor, sequence_tokens: torch.Tensor) -> None:
        """Add a batch.

        Args:
            output: The batch's sums.
            tokens: Scalar, completion tokens of the batch.
            sequence_tokens: Scalar, tokens of the student's sequences, prompts included.
        """
        sums = [getattr(output, name) for name in SUMS]
        device = tokens.device
        row = torch.stack(
            [torch.as_tensor(x).detach().to(device, torch.float64) for x in (*sums, tokens, sequence_tokens)]
        )
        if self._sums is None:
            self._since = self._since if self._seen else time.perf_counter()
            self._sums = row
        else:
            self._sums = self._sums + row

    def take(
        self, reduce: Callable[[torch.Tensor], torch.Tensor], device: torch.device, *, training: bool
    ) -> Mapping[str, float]:
        """Return the means since the last call and start anew.

        Args:
            reduce: Sums a tensor over the ranks.
            device: Where a rank without a batch puts its zeros.
            training: Whether to count tokens seen and their rate, which evaluation does not have.
        """
        sums = self._sums if self._sums is not None else torch.zeros(len(SUMS) + 2, dtype=torch.float64, device=device)
        self._sums = None
        *values, tokens, sequence_tokens = reduce(sums).tolist()
        now, before = time.perf_counter(), self._since
        self._since = now
        if tokens == 0:
            return {}
        kl, ce, entropy, agreement, correct = (value / tokens for value in values)
        means = {
            "kl": kl,
            "ce": ce,
            "entropy": entropy,
            "top1_agreement": agreement,
            "mean_token_accuracy": correct,
        }
        if training:
            self._seen += sequence_tokens
            means |= {
                "num_tokens": self._seen,
                "tokens_per_second": sequence_tokens / max(now - before, 1e-9),
            }
        return means
