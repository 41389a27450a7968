"""What every teacher can do: the small protocol that the trainer knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..losses.signals import Targets
    from .completions.store import CompletionStore


@dataclass(frozen=True)
class Completion:
    """A completion that a teacher wrote.

    Attributes:
        ids: Token ids, the stop token included where there was one.
        finished: Whether it ended, in a stop token (which is its last id) or in front of a stop string (then that is
            the end-of-sequence token); if not it was cut at the length limit and is taught no end.
        text: What a teacher wrote that has no token ids of its own; `ids` is then empty.
        reasoning: What it thought before, if that is to be learned too; empty if not.
        unusable: Why nothing can be learned from it, with what to do; empty if something can.
    """

    ids: tuple[int, ...]
    finished: bool
    text: str | None = None
    reasoning: str = ""
    unusable: str = ""


@dataclass(frozen=True)
class GenerationSettings:
    """How a teacher writes; everything here is part of what a stored completion is found by.

    Attributes:
        max_new_tokens: Tokens at most.
        do_sample: Draw instead of taking the likeliest token.
        temperature: Of the drawing, not of the distillation.
        top_p: Nucleus of the drawing.
        seed: Of the drawing.
        batch_size: Prompts at a time; changes no greedy completion beyond rounding, and every drawn one.
        stop: Texts that end a completion and are no part of it, besides the model's own stop tokens.
        engine: What runs a local model while it writes: "auto", "transformers" or "vllm", see `engines`; changes
            completions as `batch_size` does.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 42
    batch_size: int = 16
    stop: tuple[str, ...] = ()
    engine: str = "auto"


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


class Writer(Protocol):
    """What writes completions as token ids of its own: every teacher but those that give text."""

    def identity(self) -> dict[str, Any]:
        """All that its completions depend on but prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """A frozen model that writes completions and scores given ones."""

    name: str
    vocabulary: int | None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the prompts it reads."""
        ...

    @property
    def vocabulary_rows(self) -> int:
        """Rows of its LM head, known without loading the model."""
        ...

    @property
    def length_limit(self) -> int | None:
        """Tokens a sequence may have; None where the model sets no limit."""
        ...

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what it writes; a finished completion's last one is among them."""
        ...

    def share(self, vocabulary: int) -> None:
        """Restrict what is written and scored to the rows [0, vocabulary) that the student has too."""
        ...

    def identity(self) -> dict[str, Any]:
        """All that its completions depend on but prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
        ...

    def score(self, batch: Mapping[str, torch.Tensor]) -> Targets:
        """Return what the loss takes at the N completion positions of a `DistillationCollator` batch."""
        ...


@runtime_checkable
class TextTeacher(Protocol):
    """A teacher that is handed prompts as text or chat messages and answers with text: a server somewhere.

    It is a `Teacher` too, with the student's tokenizer in the place of its own.
    """

    def write(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Write one completion (its `text`) for each prompt, in the order given; each is kept as it comes."""
        ...

    def describe(self) -> str:
        """Say which model it is and where it is asked, without anything secret."""
        ...
