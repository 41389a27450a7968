"""The formats of stored targets."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Span, TargetFormat, padded_together
from .hidden import HiddenFormat
from .sampled import SampledFormat
from .topk import TopKFormat

__all__ = ["Span", "TargetFormat", "TopKFormat", "format_of", "padded_together"]

FORMATS: dict[str, type[TargetFormat]] = {each.name: each for each in (TopKFormat, SampledFormat, HiddenFormat)}


def format_of(kind: str, *, k: int, temperatures: Sequence[float], vocabulary: int) -> TargetFormat:
    """Return the format of a kind: "topk", "sample" or "hidden"; see `TargetFormat` for the settings."""
    return FORMATS[kind](k=k, temperatures=tuple(temperatures), vocabulary=vocabulary)
