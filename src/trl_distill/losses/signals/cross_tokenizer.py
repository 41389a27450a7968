"""The whole distribution of a teacher with another vocabulary, at the positions where both have read the same text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...config.devices import on_device
from ..cross_tokenizer import Compared, add_cross_divergence
from ..dense import dense_loss
from ..lm_head import ModelSide
from ..reference import Matched
from ..result import DistillationLoss
from ..settings import LossSettings
from .base import whole


@dataclass(frozen=True)
class CrossTokenizerSignal(ModelSide):
    """A teacher's hidden states at n of N completion positions, without gradient, and its head.

    Attributes:
        kinds: [N] int64 on the host, how the tokens match at each of the student's positions, 0 where it is not
            compared; the n others are those of `hidden`, in order.
        matched: Which tokens are the same, by kind.
    """

    kinds: np.ndarray
    matched: Mapping[int, Matched]

    @property
    def tokens(self) -> int:
        return len(self.kinds)

    @property
    def covered(self) -> int:
        """The positions that are compared, n."""
        return len(self.hidden)

    def loss(self, student: ModelSide, labels: torch.Tensor, settings: LossSettings) -> DistillationLoss:
        needed = settings.alpha < 1 or self.covered == 0  # if nothing is compared the loss has to depend on it
        with whole(student) as own, whole(self, own.hidden.device) as teacher:
            device = own.hidden.device
            with torch.set_grad_enabled(torch.is_grad_enabled() and needed):
                ce = dense_loss(own, None, labels.to(device), replace(settings, alpha=0.0))
            compared = self._compared(device)
            return add_cross_divergence(ce, student=own, teacher=teacher, compared=compared, settings=settings)

    def _compared(self, device: torch.device) -> list[Compared]:
        """Return the positions of each kind; they are picked out on the host, so that the device is not waited for."""
        positions = self.kinds.nonzero()[0]
        if len(positions) != len(self.hidden):
            raise RuntimeError(
                f"the teacher scored {len(self.hidden)} positions and the student has {len(positions)} to compare; "
                "both sides of a batch must mark the same spans."
            )
        parts = []
        for kind, matched in self.matched.items():
            rows = (self.kinds[positions] == kind).nonzero()[0]
            if len(rows):
                places, among = (on_device(index, device) for index in (positions[rows], rows))
                parts.append(Compared(places, among, matched.to(device)))
        return parts
