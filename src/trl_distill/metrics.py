"""Sums of a run's figures between two log lines, kept on the device and read once a line.

A sum is a pair of float32 numbers: the sum, and what rounding has left out of it. That is ten digits without float64,
which Apple's GPUs and some of Intel's do not have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .forward import CompletionOutput

ASKED = ("top1_agreement", "teacher_coverage")  # of tokens that a teacher was asked about
SUMS = (
    *("loss", "kl", "ce", "entropy", "top1_agreement", "top1_correct", "teacher_coverage"),
    *("retain_kl", "retain_tokens", "aux_loss"),
)
COUNTS = ("asked", "others", "own", "own_kl", "tokens", "sequence_tokens", "batches")


class DistillationMetrics:
    """Token-weighted means since the last log line, over all ranks.

    Each mean is the sum over completion tokens divided by their number, so that batch size, accumulation and the
    number of ranks do not change it. What no batch reported has no mean: the divergence where no teacher is asked.
    Figures that need a teacher are means over the tokens that one was asked about. Rows to retain have a divergence of
    their own, over their tokens; `kl` is over the others'. The load-balancing loss of experts is a mean over batches.
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None  # [2, figures]: the sums, and what rounding has left out of them
        self.tokens_seen = 0.0
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and measure time from now."""
        self._sums, self._since = None, time.perf_counter()
        self._reported: set[str] = set()

    def add(
        self,
        output: CompletionOutput,
        tokens: torch.Tensor,
        sequence_tokens: torch.Tensor,
        *,
        on_policy: bool | None = None,
    ) -> None:
        """Add a batch.

        Args:
            output: The batch's sums.
            tokens: Scalar, completion tokens of the batch.
            sequence_tokens: Scalar, tokens of the student's sequences, prompts included.
            on_policy: Whether the student wrote the completions; None where it never does.
        """
        given = {name: getattr(output, name) for name in SUMS if getattr(output, name) is not None}
        self._reported |= given.keys() | ({"on_policy"} if on_policy is not None else set())
        sums = [given.get(name, 0.0) for name in SUMS]
        device = tokens.device
        asked, others = (tokens, tokens - given.get("retain_tokens", 0.0)) if "kl" in given else (0.0, 0.0)
        own, own_kl = (tokens, given["kl"]) if on_policy else (0.0, 0.0)
        all_sums = (*sums, asked, others, own, own_kl, tokens, sequence_tokens, 1.0)
        row = torch.stack([torch.as_tensor(x).detach().to(device, torch.float32) for x in all_sums])
        self._sums = torch.stack([row, torch.zeros_like(row)]) if self._sums is None else _added(self._sums, row)

    def take(self, gather: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> dict[str, float]:
        """Return the means since the last call and start anew; nothing where no batch was added.

        `tokens_seen` is what the means' `num_tokens` goes on from.

        Args:
            gather: Puts the ranks' tensors [1, ...] one after the other.
            device: Where a rank without a batch puts its zeros.
        """
        width = len(SUMS) + len(COUNTS)
        sums = self._sums if self._sums is not None else torch.zeros(2, width, device=device)
        values = [0.0] * width
        for totals, rests in gather(sums[None]).tolist():  # numbers of Python's are as precise as float64
            both = zip(values, totals, rests, strict=True)
            values = [value + (total + rest if math.isfinite(total) else total) for value, total, rest in both]
        reported = self._reported
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        found = dict(zip((*SUMS, *COUNTS), values, strict=True))
        if found["tokens"] == 0:
            return {}
        self.tokens_seen += found["sequence_tokens"]
        counts = {"kl": found["others"], "retain_kl": found["retain_tokens"], "aux_loss": found["batches"]}
        counts |= dict.fromkeys(ASKED, found["asked"])
        if found["retain_tokens"]:
            reported = reported | {"retain_kl"}  # the batches that had such rows may have been other ranks'
        shown = [name for name in SUMS if name in reported and name != "retain_tokens"]
        means = {n: found[n] / count for n in shown if (count := counts.get(n, found["tokens"])) > 0}
        if "top1_correct" in means:
            means["mean_token_accuracy"] = means.pop("top1_correct")
        if "on_policy" in reported:
            means["on_policy"] = found["own"] / found["tokens"]
            means |= {"on_policy_kl": found["own_kl"] / found["own"]} if found["own"] else {}
        return {**means, "num_tokens": self.tokens_seen, "tokens_per_second": found["sequence_tokens"] / seconds}


def _added(sums: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Return sums [2, figures] with a row [figures] added, and what that rounds off kept (Knuth's two-sum)."""
    before, rest = sums
    total = before + row
    added = total - before
    return torch.stack([total, rest + ((before - (total - added)) + (row - added))])
