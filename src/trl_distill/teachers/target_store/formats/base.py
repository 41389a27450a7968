"""What a kind of stored targets has to do: turn a teacher's scores into arrays, and arrays into what a loss takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from ....losses.lm_head import LMHead
    from ....losses.signals import DenseSignal, TeacherSignal

Arrays = dict[str, np.ndarray]
ELEMENTS = 2**25  # logits in memory at a time while targets are written


class Span(NamedTuple):
    """One sequence's tokens among those of a batch: which sequence, and how many."""

    key: bytes
    tokens: int


class Kind(Protocol):
    """One kind of targets under a store's settings.

    Attributes:
        name: As the manifest has it.
        has_head: Whether the teacher's LM head is kept beside the targets.
        temperatures: Those the targets can be used at; None is every one, with every divergence.
    """

    name: ClassVar[str]
    has_head: ClassVar[bool]

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """See above."""
        ...

    @classmethod
    def of(cls, *, k: int, temperatures: tuple[float, ...], vocabulary: int) -> Kind:
        """Return the kind under a store's settings."""
        ...

    def header(self) -> dict[str, Any]:
        """Return what the manifest says of it: kind, k and temperatures."""
        ...

    def arrays(self, scored: DenseSignal, spans: Sequence[Span]) -> Arrays:
        """Return what is stored of N scored tokens, by name: [N, width] each.

        Args:
            scored: The teacher's hidden states and head.
            spans: The sequences that the N tokens are of, in order.
        """
        ...

    def targets(self, arrays: Mapping[str, torch.Tensor], head: LMHead | None) -> TeacherSignal:
        """Return the targets that the arrays of N tokens are.

        Args:
            arrays: [N, width] each; a sequence that needs less width than others is filled up with zeros.
            head: The teacher's, where the kind keeps it.
        """
        ...


def tokens_at_a_time(rows: int) -> int:
    """Return how many tokens' full logits are made at a time."""
    return max(1, ELEMENTS // rows)


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return [n, width] arrays of several widths as one, narrower ones filled up with zeros."""
    width = max(part.shape[1] for part in parts)
    whole = np.zeros((sum(map(len, parts)), width), parts[0].dtype)
    end = 0
    for part in parts:
        begin, end = end, end + len(part)
        whole[begin:end, : part.shape[1]] = part
    return whole
