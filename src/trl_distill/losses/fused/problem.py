"""The inputs of one fused loss call: the student's logits, the teacher's side, labels and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ..settings import LossSettings
from .projection import MixtureProjection, Projection

Tensor = torch.Tensor


class KnownTokens(NamedTuple):
    """The known tokens of a teacher's distributions at N positions, at the training temperature.

    Attributes:
        token_ids: [N, k] int64, distinct in a row, the teacher's likeliest first; -1 if there is none.
        probs: [N, k], 0 if there is no token.
        tail: [N], the mass of all other tokens; None if there is no tail.
        negentropy: [N] of sum p log p, which replaces the known tokens' own; None keeps theirs.
    """

    token_ids: Tensor
    probs: Tensor
    tail: Tensor | None = None
    negentropy: Tensor | None = None

    @property
    def unknown(self) -> Tensor:
        """[N] bool: positions without any known token."""
        return (self.token_ids < 0).all(1)


@dataclass(frozen=True)
class Problem:
    """The inputs of one call.

    Attributes:
        student: The student's softened logits over N tokens.
        labels: [N] token ids.
        settings: Loss settings.
        teacher: The teacher's logits, if it has any and the divergence a weight.
        known: The few tokens of its distributions that are known, if it has no logits.
        vocabulary: Rows [0, vocabulary) of the divergence; 0 without a teacher.
    """

    student: Projection
    labels: Tensor
    settings: LossSettings
    teacher: Projection | MixtureProjection | None = None
    known: KnownTokens | None = None
    vocabulary: int = 0

    @property
    def rules_out(self) -> bool:
        """Whether a logit of either side may be -inf."""
        return self.student.rules_out or (self.teacher is not None and self.teacher.rules_out)

    def kernel_room(self) -> int:
        """Return how many numbers a tile's row needs on a GPU in addition to the student's."""
        if self.known is not None:  # a copy of logits that the caller owns
            return self.student.vocabulary_rows if self.student.head.weight is None else 0
        return 0 if self.teacher is None else self.teacher.kernel_room(self.vocabulary)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors that autograd keeps, the student's hidden states, weight and bias first."""
        teacher = () if self.teacher is None else self.teacher.tensors
        return (*self.student.tensors, self.labels, *teacher, *(self.known or ()))

    def with_tensors(self, tensors: Sequence[Any]) -> Problem:
        """Return the same problem on other tensors."""
        return replace(
            self,
            student=self.student.with_tensors(tensors[:3]),
            labels=tensors[3],
            teacher=None if self.teacher is None else self.teacher.with_tensors(tensors[4:]),
            known=None if self.known is None else KnownTokens(*tensors[4:]),
        )
