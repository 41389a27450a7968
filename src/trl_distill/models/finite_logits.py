"""Sees that a model generates from logits that are numbers, without waiting for its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

NEVER = 2**62


class FiniteLogits(LogitsProcessor):
    """Notes the first token of each row whose logits are NaN or +inf, and lets generation go on.

    Greedy decoding would choose the token at the NaN, and sampling fails, on a GPU with an assertion that ends the
    process.
    """

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None
        self._token = 0

    @property
    def argument(self) -> dict[str, Any]:
        """The argument of `generate`."""
        return {"logits_processor": LogitsProcessorList([self])}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the scores [B, V] of a token, those of a row that has none made equal."""
        bad = ~(scores.amax(-1) < torch.inf)
        if self._first is None:
            self._first = torch.full_like(input_ids[:, 0], NEVER)
        self._first = torch.where(bad, self._first.clamp(max=self._token), self._first)
        self._token += 1
        return scores.masked_fill(bad[:, None], 0.0)  # type: ignore[return-value]

    def broken(self, lengths: Sequence[int]) -> list[int]:
        """Return the rows in whose tokens, so many of each, there is such a one; this reads the device."""
        first = [] if self._first is None else self._first.tolist()
        return [row for row, (token, length) in enumerate(zip(first, lengths, strict=False)) if token < length]
