"""What every teacher can do: the small protocol that the trainer knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ..models.generation import Completion, GenerationSettings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..losses.signals import TeacherSignal
    from .completions.store import CompletionStore


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

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Restrict what is written and scored to the rows [0, vocabulary) that the student has too."""
        ...

    def identity(self) -> dict[str, Any]:
        """All that its completions depend on but prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
        ...

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
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
