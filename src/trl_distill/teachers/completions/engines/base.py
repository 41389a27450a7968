"""Who writes completions, and the error of an engine that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ....models.generation import Completion, GenerationSettings


class Writer(Protocol):
    """What writes completions as token ids of its own: every teacher but those that give text."""

    name: str

    def identity(self) -> dict[str, Any]:
        """See `Teacher.identity`."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """See `Teacher.generate`."""
        ...


class EngineError(Exception):
    """An engine cannot write, or not to the end; the text says why."""
