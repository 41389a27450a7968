"""Sums of a run's figures between two log lines, kept on the device and read once a line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .forward import CompletionOutput

SUMS = ("loss", "kl", "ce", "entropy", "top1_agreement", "top1_correct", "covered")


class DistillationMetrics:
    """Token-weighted means since the last log line, over all ranks.

    Each mean is the sum over completion tokens divided by their number, so that batch size, accumulation and the
    number of ranks do not change it.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self.tokens_seen = 0.0
        self.partial = False  # whether the teacher is known at some tokens only
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and measure time from now."""
        self._sums, self._since = None, time.perf_counter()

    def add(self, output: CompletionOutput, tokens: torch.Tensor, sequence_tokens: torch.Tensor) -> None:
        """Add a batch.

        Args:
            output: The batch's sums.
            tokens: Scalar, completion tokens of the batch.
            sequence_tokens: Scalar, tokens of the student's sequences, prompts included.
        """
        sums = [getattr(output, name) for name in SUMS]
        sums[-1] = tokens if output.covered is None else output.covered
        device = tokens.device
        row = torch.stack(
            [torch.as_tensor(x).detach().to(device, torch.float64) for x in (*sums, tokens, sequence_tokens)]
        )
        self._sums = row if self._sums is None else self._sums + row

    def take(self, reduce: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> dict[str, float]:
        """Return the means since the last call and start anew; nothing where no batch was added.

        `tokens_seen` is what the means' `num_tokens` goes on from.

        Args:
            reduce: Sums a tensor over the ranks.
            device: Where a rank without a batch puts its zeros.
        """
        sums = self._sums if self._sums is not None else torch.zeros(len(SUMS) + 2, dtype=torch.float64, device=device)
        *values, tokens, sequence_tokens = reduce(sums).tolist()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        if tokens == 0:
            return {}
        self.tokens_seen += sequence_tokens
        means = {name: value / tokens for name, value in zip(SUMS, values, strict=True)}
        means["mean_token_accuracy"] = means.pop("top1_correct")
        covered = means.pop("covered")
        if self.partial:
            means["teacher_coverage"] = covered
        return {**means, "num_tokens": self.tokens_seen, "tokens_per_second": sequence_tokens / seconds}
