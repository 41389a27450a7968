"""A teacher's likeliest tokens, and the log-normalisers at the temperatures they are to be used at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ....config.devices import to_float64
from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal, TopKSignal
from .base import Arrays, Span, TargetFormat, tokens_at_a_time

NAMES = ("token_ids", "log_probs", "log_normalizers")


class TopKFormat(TargetFormat):
    """The k likeliest tokens of each distribution (at most the vocabulary), the first the likeliest.

    The log-normalisers are those of the rounded log-probabilities: with them the stored tokens' mass at T, and so the
    tail's, is exact, and rounding moves mass among the stored tokens alone.
    """

    name = "topk"

    def __init__(self, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> None:
        super().__init__(k=min(k, vocabulary), temperatures=temperatures, vocabulary=vocabulary)

    @torch.no_grad()
    def encode(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return token ids [N, k], float16 log-probabilities [N, k] and float32 log-normalisers [N, m]."""
        rows, parts = self.vocabulary, []
        for hidden in scored.hidden.split(tokens_at_a_time(rows)):
            logits = scored.head.logits(hidden, rows).float()
            values, ids = logits.log_softmax(-1).topk(self.k)
            masses = []
            for temperature in self.temperatures:
                softened = to_float64(logits / temperature)
                stored = softened.gather(1, ids.to(softened.device))
                masses.append(torch.logsumexp(stored, 1) - torch.logsumexp(softened, 1))
            parts.append(self._rounded(ids, values, masses))
        return {name: torch.cat(own).cpu().numpy() for name, own in zip(NAMES, zip(*parts, strict=True), strict=True)}

    def at_one(self, ids: np.ndarray, log_probs: np.ndarray) -> Arrays:
        """Return what is stored at T = 1, as `encode` does, from the likeliest tokens alone.

        `ids` are [N, k] token ids, the likeliest first; `log_probs` [N, k] float32, over the whole vocabulary.
        """
        values = torch.from_numpy(log_probs)
        mass = torch.logsumexp(values.double(), 1).clamp(max=0)
        rounded = self._rounded(torch.from_numpy(ids).long(), values, [mass])
        return {name: own.numpy() for name, own in zip(NAMES, rounded, strict=True)}

    def _rounded(self, ids: torch.Tensor, values: torch.Tensor, masses: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return what is stored of log-probabilities [N, k] and the log of their mass [N] at each temperature."""
        rounded, half = to_float64(values.half()), values.half()
        pairs = zip(self.temperatures, masses, strict=True)
        normalizers = [torch.logsumexp(rounded / temperature, 1) - mass for temperature, mass in pairs]
        return [ids, half, torch.stack(normalizers, 1).float()]

    def decode(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> TopKSignal:
        normalizers = {t: arrays["log_normalizers"][:, i] for i, t in enumerate(self.temperatures)}
        return TopKSignal(arrays["token_ids"].long(), arrays["log_probs"].float(), normalizers, self.vocabulary)
