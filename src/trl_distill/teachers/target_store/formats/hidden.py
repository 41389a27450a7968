"""A teacher's last hidden states, and once its LM head: the whole distribution, without the teacher's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal
from .base import Arrays, Span, TargetFormat

HIDDEN, BITS = "hidden", "bfloat16"


class HiddenFormat(TargetFormat):
    """Hidden states as the teacher computed them, to the bit; neither k nor temperatures matter."""

    name = "hidden"
    has_head = True

    def __init__(self, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> None:
        super().__init__(k=0, temperatures=(), vocabulary=vocabulary)

    def encode(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return the hidden states [N, H]; bfloat16, which numpy does not have, as the float16 of the same bits."""
        hidden = scored.hidden.detach().cpu().contiguous()
        if hidden.dtype == torch.bfloat16:
            return {BITS: hidden.view(torch.float16).numpy()}
        return {HIDDEN: hidden.numpy()}

    def decode(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> DenseSignal:
        if head is None:
            raise ValueError("targets of the kind hidden come with the teacher's LM head.")
        bits = arrays.get(BITS)
        hidden = arrays[HIDDEN] if bits is None else bits.contiguous().view(torch.bfloat16)
        return DenseSignal(hidden, head, self.vocabulary)
