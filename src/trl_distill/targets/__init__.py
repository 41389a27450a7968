"""What teachers say of a batch's completion tokens, each kind with the loss that takes it."""

from __future__ import annotations

from .base import LossSettings, Targets, cross_entropy
from .hidden import HiddenTargets
from .sampled import Draws, SampledTargets
from .topk import TopKTargets

__all__ = ["Draws", "HiddenTargets", "LossSettings", "SampledTargets", "Targets", "TopKTargets", "cross_entropy"]
