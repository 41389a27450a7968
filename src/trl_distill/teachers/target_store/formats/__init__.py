"""The formats in which a store keeps a teacher's targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Span, TargetFormat, padded_together
from .hidden import HiddenFormat
from .sampled import SampledFormat
from .topk import TopKFormat

__all__ = ["Span", "TargetFormat", "TopKFormat", "format_from", "format_of", "padded_together"]

FORMATS: dict[str, type[TargetFormat]] = {each.name: each for each in (TopKFormat, SampledFormat, HiddenFormat)}


def format_of(name: str, *, k: int, temperatures: Sequence[float], vocabulary: int) -> TargetFormat:
    """Return the format of a name: "topk", "sample" or "hidden"; see `TargetFormat` for the settings."""
    return FORMATS[name](k=k, temperatures=tuple(temperatures), vocabulary=vocabulary)


def format_from(manifest: Mapping[str, Any]) -> TargetFormat:
    return format_of(manifest["kind"], **{name: manifest[name] for name in ("k", "temperatures", "vocabulary")})
