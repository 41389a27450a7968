"""Deprecation warnings that a user cannot act on: names that TRL and PEFT use, or that are settings here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# category and the start of the text; TRL 1.16 and PEFT 0.21 use these names, which transformers 5.23 deprecates
DEPRECATED: tuple[tuple[type[Warning], str], ...] = ((FutureWarning, r"`(is_)?gradient_checkpointing` is deprecated"),)


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Hide them."""
    with warnings.catch_warnings():
        for category, start in DEPRECATED:
            warnings.filterwarnings("ignore", start, category)
        yield
