"""A server's log-probabilities of completions, row by row, and the targets of a batch made from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ...config.devices import on_device
from ...losses.signals import TopKSignal
from ...models.batch_layout import layout_of
from ..target_store.formats import padded_together
from .answer_values import LOWEST

NO_TOKEN = -1


@dataclass(frozen=True)
class ScoredRow:
    """One completion's n tokens, at most k of the teacher's at each.

    Attributes:
        token_ids: [n, k] int32, the likeliest first, -1 if there are fewer.
        log_probs: [n, k] float32 at T = 1, over the teacher's whole vocabulary.
    """

    token_ids: np.ndarray
    log_probs: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """[n] bool: the positions with any known token."""
        return self.token_ids[:, 0] != NO_TOKEN

    def first(self, tokens: int) -> ScoredRow:
        """Return the row of the first tokens: a completion may be cut for a student that has no room."""
        return ScoredRow(self.token_ids[:tokens], self.log_probs[:tokens])


class Coverage(NamedTuple):
    """How many of the supervised completion tokens have targets."""

    known: int
    tokens: int

    @property
    def fraction(self) -> float:
        """Known ones among all, from 0 to 1."""
        return self.known / max(self.tokens, 1)


def pack(pairs: Sequence[Sequence[tuple[int, float]]], *, vocabulary: int) -> ScoredRow:
    """Return a row of the ids and log-probabilities at each position, the likeliest first, empty if none are known.

    Ids that the student's vocabulary does not have are left to the tail.
    """
    kept = [[(i, p) for i, p in own if i < vocabulary] for own in pairs]
    shape = (len(kept), max([1, *map(len, kept)]))
    tokens, values = np.full(shape, NO_TOKEN, np.int32), np.full(shape, LOWEST, np.float32)
    for n, own in enumerate(kept):
        for rank, (token, log_prob) in enumerate(own):
            tokens[n, rank], values[n, rank] = token, max(log_prob, LOWEST)
    return ScoredRow(tokens, values)


def unknown(tokens: int) -> ScoredRow:
    return pack([[]] * tokens, vocabulary=0)


def batch_targets(
    row_of: Callable[[list[int], int], ScoredRow], batch: Mapping[str, torch.Tensor], *, vocabulary: int
) -> TopKSignal:
    """Return the targets at the N completion positions of a `DistillationCollator` batch.

    `row_of` returns the row of a sequence's ids, and is given how many of the last ones are targets.
    """
    side, device = layout_of(batch).teacher, batch["teacher_input_ids"].device
    assert side is not None
    found = [
        (row_of(ids, count), count)
        for ids, count in zip(side.sequences, side.counts.tolist(), strict=True)
        if count  # a row that another rank has too is asked about there
    ] or [(unknown(0), 0)]
    tokens = padded_together([row.token_ids[len(row.known) - n :] for row, n in found], NO_TOKEN)
    values = padded_together([row.log_probs[len(row.known) - n :] for row, n in found], LOWEST)
    ids, log_probs = on_device(tokens.astype(np.int64), device), on_device(values, device)
    # at T = 1 the probabilities of the whole vocabulary add up to 1, whose logarithm is 0
    normalizers = {1.0: torch.zeros(len(tokens), device=device)}
    return TopKSignal(ids, log_probs, normalizers, vocabulary, covered=int((tokens >= 0).any(1).sum()))


def merged(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return tokens with their log-probabilities, equal ones as one, the likeliest first."""
    total: dict[int, float] = {}
    for token, log_prob in pairs:
        total[token] = float(np.logaddexp(total.get(token, -math.inf), log_prob))
    return sorted(total.items(), key=lambda pair: -pair[1])
