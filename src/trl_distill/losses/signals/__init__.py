"""What teachers say of a batch's completion tokens, each kind with the loss that takes it."""

from __future__ import annotations

from .base import LossSettings, Targets, cross_entropy
from .cross_tokenizer import CrossTargets
from .dense import HiddenTargets
from .mixture import MixtureTargets
from .per_row import GroupedTargets
from .retained import RetainedTargets
from .sampled import Draws, SampledTargets
from .topk import TopKTargets

__all__ = [
    "CrossTargets",
    "Draws",
    "GroupedTargets",
    "HiddenTargets",
    "LossSettings",
    "MixtureTargets",
    "RetainedTargets",
    "SampledTargets",
    "Targets",
    "TopKTargets",
    "cross_entropy",
]
