"""A teacher's signals for a batch's completion tokens, each kind with its loss."""

from __future__ import annotations

from ..settings import LossSettings
from ..sparse import SampledTokens, TopKTokens
from .base import TeacherSignal, cross_entropy
from .cross_tokenizer import CrossTokenizerSignal
from .dense import DenseSignal, MixtureSignal
from .per_row import PerRowSignal, RetainedSignal
from .sparse import SampledSignal, TopKSignal

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
    "TopKTokens",
    "cross_entropy",
]
