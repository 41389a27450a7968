"""What every teacher can do: the small protocol that the trainer knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard, runtime_checkable

from ..errors import TeacherError
from ..models.generation import Completion, GenerationSettings
from ..prompts.chat_template import ChatTemplate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..losses.signals import TeacherSignal
    from ..prompts.rendering import Prompt
    from .completions.store import CompletionStore


@dataclass(frozen=True)
class Capabilities:
    """What a teacher can do, known before its weights are read; by default what a local model can.

    Attributes:
        reads: Whether prompts reach it as token "ids", or as "text" or chat messages.
        scores: Whether it gives targets for the student's tokens.
        dense: Whether its targets are hidden states and an LM head, the whole distribution.
        temperatures: Those its targets can be used at; None is all.
        scores_unseen: Whether it scores completions that are written while training.
        scores_gaps: Whether it scores completions in several pieces.
        writes: Whether it writes completions.
        renders: Whether its prompts are rendered here, with its tokenizer's chat template.
        same_tokenizer: Whether its token ids are the student's.
        single: Whether it is one teacher.
        of_student: Whether its weights are the student's own.
        moves: Whether they change while the student trains.
        shardable: Whether it works if the student's weights are sharded.
    """

    reads: Literal["ids", "text"] = "ids"
    scores: bool = True
    dense: bool = True
    temperatures: tuple[float, ...] | None = None
    scores_unseen: bool = True
    scores_gaps: bool = True
    writes: bool = True
    renders: bool = True
    same_tokenizer: bool = True
    single: bool = True
    of_student: bool = False
    moves: bool = False
    shardable: bool = True


@runtime_checkable
class Teacher(Protocol):
    """A frozen model that writes completions and scores given ones."""

    name: str
    vocabulary: int | None

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

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
        """Tokens a sequence may have; None if the model sets no limit."""
        ...

    @property
    def stop_ids(self) -> list[int]:
        """The ids that end what it writes; a finished completion's last one is among them."""
        ...

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Restrict what is written and scored to the rows [0, vocabulary) that the student has too."""
        ...

    def identity(self) -> dict[str, object]:
        """All that its completions depend on apart from prompt and settings; part of the key of everything stored."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Write one completion for each prompt (token ids), as one batch, in the order given."""
        ...

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        """Return what the loss takes at the N completion positions of a `DistillationCollator` batch."""
        ...


class TextTeacher(ABC):
    """A teacher that reads text or chat messages and answers with text; by itself it gives no probabilities.

    It has the student's tokenizer, which splits its completions into tokens.
    """

    def __init__(self, name: str, *, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary: int | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            reads="text", scores=False, dense=False, scores_unseen=False, scores_gaps=False, same_tokenizer=False
        )

    @property
    def vocabulary_rows(self) -> int:
        return len(self.tokenizer) if self.vocabulary is None else self.vocabulary

    @property
    def length_limit(self) -> int | None:
        """None: it counts its own tokens itself."""
        return None

    @property
    def stop_ids(self) -> list[int]:
        return ChatTemplate(self.tokenizer).end_tokens

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Take the student's vocabulary: completions become tokens of its tokenizer."""
        self.vocabulary = vocabulary

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        raise TeacherError(f"teacher_model {self.name!r} gives only text and cannot score; set --distill-alpha 0.")

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        raise TeacherError(f"teacher_model {self.name!r} reads text, not token ids; generate with its write().")

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """All that its completions depend on apart from prompt and settings; part of the key of everything stored."""

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Write one completion (its `text`) for each prompt, in the order given; each is kept as it comes."""

    @abstractmethod
    def describe(self) -> str:
        """Say which model it is and where it runs, without anything secret."""


def single_teachers(teacher: Teacher) -> tuple[Teacher, ...]:
    """Return the teachers that a run has: those of a list, each model once, or the one."""
    return tuple(dict.fromkeys(getattr(teacher, "teachers", (teacher,))))


def reads_text(teacher: Teacher) -> TypeGuard[TextTeacher]:
    """Whether a teacher reads text and gives text, which becomes tokens of the student's tokenizer."""
    return teacher.capabilities.reads == "text"
