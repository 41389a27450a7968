"""What the student's starting point says of rows that are to be retained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..result import DistillationLoss
from .base import LossSettings, Targets

if TYPE_CHECKING:
    import torch

    from ..lm_head import LMHead


@dataclass
class RetainedTargets:
    """Targets that are learnt by the divergence alone, whatever alpha.

    The student is at its optimum as long as it is what it was: the cross-entropy of the completions would pull it
    away from there.

    Attributes:
        targets: What is said of N completion tokens.
    """

    targets: Targets

    @property
    def tokens(self) -> int:
        """N."""
        return self.targets.tokens

    def loss(
        self, head: LMHead, hidden: torch.Tensor, labels: torch.Tensor, settings: LossSettings
    ) -> DistillationLoss:
        """Return the loss with an alpha of 1; see `Targets.loss`."""
        return self.targets.loss(head, hidden, labels, replace(settings, alpha=1.0))
