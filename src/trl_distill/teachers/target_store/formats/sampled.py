"""Tokens sampled from a teacher's distributions: fewer bytes than top-k, and unbiased (arXiv:2503.16870)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ....config.devices import to_float64
from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal, SampledSignal, SampledTokens
from .base import Arrays, Span, TargetFormat, padded_together, tokens_at_a_time


class SampledFormat(TargetFormat):
    """Counts of tokens in k samples with replacement from each distribution, for each temperature.

    The likeliest token is first, sampled or not; the others are sorted by count. A sequence's samples depend only on
    its content, not on its batch.
    """

    name = "sample"

    @torch.no_grad()
    def encode(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return token ids and counts [N, width] of each temperature, and float32 sums of p log p [N, m]."""
        rows = self.vocabulary
        uniform = torch.from_numpy(self._uniform(spans))
        parts: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in self.temperatures]
        chunk = tokens_at_a_time(rows)
        for hidden, places in zip(scored.hidden.split(chunk), uniform.split(chunk), strict=True):
            logits = to_float64(scored.head.logits(hidden, rows))
            for i, temperature in enumerate(self.temperatures):
                log_p = (logits / temperature).log_softmax(-1)
                p = log_p.exp()
                edges = p.cumsum(1)
                where = places[:, i].to(edges.device) * edges[:, -1:]
                drawn = torch.searchsorted(edges, where.contiguous(), right=True).clamp(max=rows - 1)
                counted = count(drawn.cpu().numpy(), p.argmax(1).cpu().numpy())
                negentropy = (p * log_p).masked_fill(p == 0, 0.0).sum(1)  # 0 log 0 is 0
                parts[i].append((*counted, negentropy.float().cpu().numpy()))
        out: Arrays = {}
        for i, chunks in enumerate(parts):
            ids, counts, _ = zip(*chunks, strict=True)
            out[f"token_ids_{i}"], out[f"counts_{i}"] = padded_together(ids), padded_together(counts)
        sums = [np.concatenate([negentropy for *_, negentropy in chunks]) for chunks in parts]
        return {**out, "negentropies": np.stack(sums, 1)}

    def _uniform(self, spans: Sequence[Span]) -> np.ndarray:
        """Return numbers in [0, 1) to draw by, [N, m, k], from a generator of each sequence's own."""
        shape = (len(self.temperatures), self.k)
        seeds = (np.random.Generator(np.random.PCG64(int.from_bytes(span.key, "big"))) for span in spans)
        return np.concatenate([own.random((span.tokens, *shape)) for own, span in zip(seeds, spans, strict=True)])

    def decode(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> SampledSignal:
        draws = {}
        for i, temperature in enumerate(self.temperatures):
            ids, counts = arrays[f"token_ids_{i}"].long(), arrays[f"counts_{i}"].float()
            none = counts == 0
            none[:, :1] = False  # the likeliest, even if it was not drawn
            shares = counts / self.k
            draws[temperature] = SampledTokens(ids.masked_fill(none, -1), shares, arrays["negentropies"][:, i])
        return SampledSignal(draws, self.vocabulary)


def count(drawn: np.ndarray, likeliest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct tokens and how often each was drawn, [N, width] both, zeros where a row has fewer.

    Args:
        drawn: [N, draws] token ids.
        likeliest: [N] token ids, which come first, sampled or not.
    """
    tokens, draws = drawn.shape
    ordered = np.sort(drawn, 1)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    row, place = np.arange(tokens)[:, None], np.cumsum(new, 1) - 1  # of each draw among its row's distinct tokens
    ids, counts = np.zeros((tokens, draws), np.int64), np.zeros((tokens, draws), np.int64)
    ids[row, place] = ordered
    np.add.at(counts, (np.broadcast_to(row, place.shape), place), 1)
    first = np.where((ids == likeliest[:, None]) & (counts > 0), counts, 0)
    others = counts - first
    order = np.argsort(-others, 1, kind="stable")
    ids, others = np.take_along_axis(ids, order, 1), np.take_along_axis(others, order, 1)
    ids = np.concatenate([likeliest[:, None], np.where(others > 0, ids, 0)], 1)
    counts = np.concatenate([first.sum(1, keepdims=True), others], 1)
    width = max(1, int(np.flatnonzero((counts > 0).any(0)).max(initial=0)) + 1)
    kind = np.uint8 if draws < 2**8 else np.uint16 if draws < 2**16 else np.uint32
    return ids[:, :width], counts[:, :width].astype(kind)
