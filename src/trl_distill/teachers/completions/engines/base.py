"""What writes many completions for a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ....models.generation import Completion, GenerationSettings


@dataclass(frozen=True)
class Source:
    """Where a local model's weights are, so that another process can load the same.

    Attributes:
        path: A folder or a Hub name; an adapter's folder is its base with the adapter.
        revision: Of a Hub model.
        dtype: "auto" (as saved), "float32", "bfloat16" or "float16".
        quantization: "int4" or "int8" by bitsandbytes, else None.
        device_map: As in transformers.
        trust_remote_code: Whether code that the model brings may run.
        device: Where it goes without a device map; None is the CPU.
    """

    path: str
    revision: str | None = None
    dtype: str = "auto"
    quantization: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    device: Any = None

    @property
    def spread(self) -> bool:
        """Whether it is placed by a device map, or by bitsandbytes, and not on `device`."""
        return self.device_map is not None or self.quantization is not None


class Writer(Protocol):
    """What writes completions as token ids of its own: every teacher but those that give text."""

    name: str

    def identity(self) -> dict[str, Any]:
        """All that its completions depend on except prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
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
            prompts: Token ids by key, the longest first; drawn completions have their seeds from the keys.
            settings: How the teacher writes.

        Raises:
            EngineError: It cannot; what was yielded before is right.
        """
        ...
