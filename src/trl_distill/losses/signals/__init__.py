"""What teachers say of a batch's completion tokens, each kind with the loss that takes it."""

from __future__ import annotations

from .base import LossSettings, TeacherSignal, cross_entropy
from .cross_tokenizer import CrossTokenizerSignal
from .dense import DenseSignal
from .mixture import MixtureSignal
from .per_row import PerRowSignal
from .retained import RetainedSignal
from .sampled import SampledSignal, SampledTokens
from .topk import TopKSignal

__all__ = [
    "CrossTokenizerSignal",
    "DenseSignal",
    "LossSettings",
    "MixtureSignal",
    "PerRowSignal",
    "RetainedSignal",
    "SampledSignal",
    "SampledTokens",
    "TeacherSignal",
    "TopKSignal",
    "cross_entropy",
]
