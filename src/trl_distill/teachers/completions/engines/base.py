"""The protocol of a model that generates completions, and the engines' error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ....models.generation import Completion, GenerationSettings


class Writer(Protocol):
    """A model that generates completions as its own token ids: every teacher except text teachers."""

    name: str

    def identity(self) -> dict[str, Any]:
        """See `Teacher.identity`."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """See `Teacher.generate`."""
        ...


class EngineError(Exception):
    """An engine cannot generate, or failed; the message says why."""
