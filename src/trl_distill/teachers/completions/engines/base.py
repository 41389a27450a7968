"""What writes many completions for a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


class Engine(Protocol):
    """What writes the completions of many prompts."""

    name: str

    def write(
        self, prompts: Mapping[str, Sequence[int]], settings: GenerationSettings
    ) -> Iterator[dict[str, Completion]]:
        """Yield completions by key as they are finished.

        Args:
            prompts: Token ids by key, the longest first; sampled completions have their seeds from the keys.
            settings: How the teacher writes.

        Raises:
            EngineError: It cannot; what was yielded before is right.
        """
        ...
