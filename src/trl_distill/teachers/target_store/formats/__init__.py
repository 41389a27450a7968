"""The kinds of targets that a store may hold, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .base import Kind, Span, stacked
from .hidden import Hidden
from .sampled import Sample
from .topk import TopK

__all__ = ["Hidden", "Kind", "Sample", "Span", "TopK", "kind_from", "kind_of", "stacked"]

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (TopK, Sample, Hidden)}


def kind_of(name: str, *, k: int, temperatures: Sequence[float], vocabulary: int) -> Kind:
    """Return a kind of targets under a store's settings.

    Args:
        name: "topk", "sample" or "hidden".
        k: Tokens kept ("topk", at most the vocabulary) or drawn ("sample") of each distribution.
        temperatures: Those the targets can be used at; "hidden" has every one.
        vocabulary: Rows over which the teacher is normalised.
    """
    return KINDS[name].of(k=k, temperatures=tuple(temperatures), vocabulary=vocabulary)


def kind_from(manifest: Mapping[str, Any]) -> Kind:
    """Return the kind that a store's manifest describes."""
    own = {name: manifest[name] for name in ("k", "temperatures", "vocabulary")}
    return kind_of(manifest["kind"], **own)
