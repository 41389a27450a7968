"""Sums of a run's figures between two log lines, kept on the device and read once a line."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .forward import CompletionOutput

SUMS = (
    *("loss", "kl", "ce", "entropy", "top1_agreement", "top1_correct", "teacher_coverage"),
    *("retain_kl", "retain_tokens"),
)


class DistillationMetrics:
    """Token-weighted means since the last log line, over all ranks.

    Each mean is the sum over completion tokens divided by their number, so that batch size, accumulation and the
    number of ranks do not change it. What no batch reported has no mean: the divergence where no teacher is asked.
    Rows to retain have a divergence of their own, over their tokens; `kl` is over the others'.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None
        self.tokens_seen = 0.0
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and measure time from now."""
        self._sums, self._since = None, time.perf_counter()
        self._reported: set[str] = set()

    def add(self, output: CompletionOutput, tokens: torch.Tensor, sequence_tokens: torch.Tensor) -> None:
        """Add a batch.

        Args:
            output: The batch's sums.
            tokens: Scalar, completion tokens of the batch.
            sequence_tokens: Scalar, tokens of the student's sequences, prompts included.
        """
        given = {name: getattr(output, name) for name in SUMS if getattr(output, name) is not None}
        self._reported |= given.keys()
        sums = [given.get(name, 0.0) for name in SUMS]
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
        reported = self._reported
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        if tokens == 0:
            return {}
        self.tokens_seen += sequence_tokens
        found = dict(zip(SUMS, values, strict=True))
        retained = found.pop("retain_tokens")
        counts = {"kl": tokens - retained, "retain_kl": retained}
        if retained:
            reported = reported | {"retain_kl"}  # the batches that had such rows may have been other ranks'
        means = {
            name: value / count
            for name, value in found.items()
            if name in reported and (count := counts.get(name, tokens)) > 0
        }
        if "top1_correct" in means:
            means["mean_token_accuracy"] = means.pop("top1_correct")
        return {**means, "num_tokens": self.tokens_seen, "tokens_per_second": sequence_tokens / seconds}
