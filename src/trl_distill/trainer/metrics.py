"""Sums of a run's metrics between two log lines, kept on the device and read from it once a line.

On a device a sum is a pair of float32 numbers: the sum, and what rounding has left out of it. That is ten digits
without float64, which Apple's GPUs and some of Intel's do not have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ..models.completion_forward import CompletionOutput

ASKED = ("top1_agreement", "teacher_coverage")  # of tokens that a teacher was asked about
SUMS = (
    *("loss", "kl", "ce", "entropy", "top1_agreement", "top1_correct", "teacher_coverage"),
    *("retain_kl", "retain_tokens", "aux_loss"),
)
COUNTS = ("asked", "others", "own", "own_kl", "tokens", "sequence_tokens", "batches")


class DistillationMetrics:
    """Token-weighted means since the last log line, over all ranks.

    Each mean is the sum over completion tokens divided by their number, so that batch size, accumulation and the
    number of ranks do not change it. Figures that no batch reported have no mean, for example the divergence without a
    teacher. Figures that need a teacher are means over the tokens that one was asked about. Rows to retain have a
    divergence of their own, over their tokens; `kl` is over the others'. The load-balancing loss of experts is a mean
    over batches.
    """

    def __init__(self) -> None:
        self.tokens_seen = 0.0
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and measure time from now."""
        self._since = time.perf_counter()
        # on the device, by what a batch reports: [2, figures], the sums and what rounding has left out of them
        self._sums: dict[tuple[str, ...], torch.Tensor] = {}
        self._numbers: dict[str, float] = {}  # sums of what the host knows
        self._reported: set[str] = set()

    def add(
        self,
        output: CompletionOutput,
        tokens: torch.Tensor,
        sequence_tokens: torch.Tensor | int,
        *,
        on_policy: bool | None = None,
    ) -> None:
        """Add a batch; nothing is read from its device.

        Args:
            output: The batch's sums.
            tokens: Scalar, completion tokens of the batch.
            sequence_tokens: Tokens of the student's sequences, prompts included.
            on_policy: Whether the student wrote the completions; None if it never does.
        """
        given = {name: getattr(output, name) for name in SUMS if getattr(output, name) is not None}
        self._reported |= given.keys() | ({"on_policy"} if on_policy is not None else set())
        figures: dict[str, Any] = {**given, "tokens": tokens, "sequence_tokens": sequence_tokens, "batches": 1}
        if "kl" in given:
            figures |= {"asked": tokens, "others": tokens - given.get("retain_tokens", 0)}
        if on_policy:
            figures |= {"own": tokens} | ({"own_kl": given["kl"]} if "kl" in given else {})
        for name, number in figures.items():
            if not isinstance(number, torch.Tensor):
                self._numbers[name] = self._numbers.get(name, 0) + number
        sums = {name: figure.detach() for name, figure in figures.items() if isinstance(figure, torch.Tensor)}
        row = torch.stack([figure.to(tokens.device, torch.float32) for figure in sums.values()])
        before = self._sums.get(names := tuple(sums))
        self._sums[names] = torch.stack([row, torch.zeros_like(row)]) if before is None else _add_exactly(before, row)

    def pop_means(self, gather: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> dict[str, float]:
        """Return the means since the last call and restart; nothing if no batch was added.

        `num_tokens` counts on from `tokens_seen`.

        Args:
            gather: Puts the ranks' tensors [1, ...] one after the other.
            device: Where they are put together.
        """
        names = (*SUMS, *COUNTS)
        values = [0.0] * len(names)
        for totals, rests in gather(self._sums_of_rank(names).to(device)[None]).tolist():
            both = zip(values, totals, rests, strict=True)  # numbers of Python's are as precise as float64
            values = [value + (total + rest if math.isfinite(total) else total) for value, total, rest in both]
        reported = self._reported
        seconds = max(time.perf_counter() - self._since, 1e-9)
        self.restart()
        found = dict(zip(names, values, strict=True))
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

    def _sums_of_rank(self, names: Sequence[str]) -> torch.Tensor:
        """Return this rank's sums of these figures and what float32 leaves out of them, [2, figures]."""
        sums = dict.fromkeys(names, 0.0) | self._numbers
        for own, pairs in self._sums.items():
            for name, total, rest in zip(own, *pairs.tolist(), strict=True):
                sums[name] += total + rest if math.isfinite(total) else total
        exact = np.array([sums[name] for name in names])
        rounded = exact.astype(np.float32)
        rest = np.subtract(exact, rounded, out=np.zeros_like(exact), where=np.isfinite(exact))
        return torch.from_numpy(np.stack([rounded, rest.astype(np.float32)]))


def _add_exactly(sums: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """Return sums [2, figures] with a row [figures] added, and what that rounds off kept (Knuth's two-sum)."""
    before, rest = sums
    total = before + row
    added = total - before
    return torch.stack([total, rest + ((before - (total - added)) + (row - added))])
