"""The protocol of formats: encode a teacher's scores as arrays, decode arrays into targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from ....losses.lm_head import LMHead
from ....losses.signals import DenseSignal, TeacherSignal

Arrays = dict[str, np.ndarray]
ELEMENTS = 2**25  # logits in memory at a time while targets are written


class Span(NamedTuple):
    """One sequence's tokens among those of a batch: which sequence, and how many."""

    key: bytes
    tokens: int


class TargetFormat(ABC):
    """One format of targets under a store's settings.

    Attributes:
        name: As the manifest has it.
        has_head: Whether the teacher's LM head is kept beside the targets, which can then be used at every
            temperature and with every divergence.
        k: Tokens kept or sampled from each distribution.
        temperatures: Those the targets can be used at.
        vocabulary: Rows over which the teacher is normalised.
    """

    name: ClassVar[str]
    has_head: ClassVar[bool] = False

    def __init__(self, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> None:
        self.k, self.temperatures, self.vocabulary = k, temperatures, vocabulary

    def header(self) -> dict[str, object]:
        """Return its manifest entries: kind, k and temperatures."""
        return {"kind": self.name, "k": self.k, "temperatures": list(self.temperatures)}

    @abstractmethod
    def encode(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Encode the N scored tokens of sequences as arrays by name, [N, width] each."""

    def unusable(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which of the N tokens, [N] bool, have a number among their arrays that is NaN or +inf.

        -inf is the logarithm of a probability of 0.
        """
        floats = [array for array in arrays.values() if array.dtype.kind == "f"]
        return np.any([(~(array < np.inf)).any(1) for array in floats], axis=0)

    @abstractmethod
    def decode(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> TeacherSignal:
        """Decode the arrays of N tokens, [N, width] each, into targets, with the stored head.

        A sequence that needs less width than others is padded with zeros.
        """


def tokens_at_a_time(rows: int) -> int:
    return max(1, ELEMENTS // rows)


def padded_together(parts: Sequence[np.ndarray], fill: float = 0) -> np.ndarray:
    """Return [n, width] arrays of several widths as one, row by row in memory, narrower ones padded with `fill`."""
    width = max(part.shape[1] for part in parts)
    whole = np.empty((sum(map(len, parts)), width), parts[0].dtype)  # parts lie column by column
    pads = [((0, 0), (0, width - part.shape[1])) for part in parts]
    padded = [np.pad(part, pad, constant_values=fill) for part, pad in zip(parts, pads, strict=True)]
    return np.concatenate(padded, out=whole)
