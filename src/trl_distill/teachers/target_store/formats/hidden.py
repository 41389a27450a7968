"""A teacher's last hidden states, and once its LM head: the whole distribution, without the teacher's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal
from .base import Arrays, Span


class Hidden:
    """Hidden states as the teacher computed them, to the bit.

    Args:
        vocabulary: Rows over which the teacher is normalised.
    """

    name: ClassVar[str] = "hidden"
    has_head: ClassVar[bool] = True

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.temperatures = None

    @classmethod
    def of(cls, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> Hidden:
        """Return the kind; neither k nor temperatures matter to it."""
        return cls(vocabulary)

    def header(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {"kind": self.name, "k": 0, "temperatures": []}

    def arrays(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return the hidden states [N, H]; bfloat16, which numpy does not have, as the float16 of the same bits."""
        hidden = scored.hidden.detach().cpu().contiguous()
        if hidden.dtype == torch.bfloat16:
            return {BITS: hidden.view(torch.float16).numpy()}
        return {HIDDEN: hidden.numpy()}

    def targets(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> DenseSignal:
        """Return hidden states and head."""
        if head is None:
            raise ValueError("targets of the kind hidden come with the teacher's LM head.")
        bits = arrays.get(BITS)
        hidden = arrays[HIDDEN] if bits is None else bits.contiguous().view(torch.bfloat16)
        return DenseSignal(hidden, head, self.vocabulary)


HIDDEN, BITS = "hidden", "bfloat16"
