"""The teacher protocol that the trainer uses."""

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
    """A teacher's capabilities, known before its weights are read; the defaults are those of a local model.

    Attributes:
        reads: Whether it reads prompts as token "ids", or as "text" or chat messages.
        scores: Whether it gives targets for the student's tokens.
        dense: Whether its targets are hidden states and an LM head, the whole distribution.
        temperatures: Those its targets can be used at; None is all.
        scores_unseen: Whether it scores completions that are generated during training.
        scores_gaps: Whether it scores completions in several pieces.
        writes: Whether it generates completions.
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
    """A frozen model that generates completions and scores given ones."""

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
        """The stop token ids; a finished completion ends in one of them."""
        ...

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Restrict generation and scoring to the rows [0, vocabulary) shared with the student."""
        ...

    def identity(self) -> dict[str, object]:
        """Everything its completions depend on, apart from prompt and settings; part of every store key."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Generate one completion per prompt (token ids), as one batch, in the given order."""
        ...

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        """Return the signal for the N completion positions of a `DistillationCollator` batch."""
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
        """None: it checks its own limit."""
        return None

    @property
    def stop_ids(self) -> list[int]:
        return ChatTemplate(self.tokenizer).end_tokens

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Do nothing: completions become tokens of the student's tokenizer."""
        self.vocabulary = vocabulary

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        raise TeacherError(f"teacher_model {self.name!r} gives text only and cannot score; set --distill-alpha 0.")

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        raise TeacherError(f"teacher_model {self.name!r} reads text, not token ids; generate with its write().")

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything its completions depend on, apart from prompt and settings; part of every store key."""

    @abstractmethod
    def write(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Generate one completion (its `text`) per prompt, in the given order; each is stored as it arrives."""

    @abstractmethod
    def describe(self) -> str:
        """Describe the model and where it runs, without secrets."""


def single_teachers(teacher: Teacher) -> tuple[Teacher, ...]:
    """Return a run's teachers: those of a list, each model once, or the single one."""
    return tuple(dict.fromkeys(getattr(teacher, "teachers", (teacher,))))


def reads_text(teacher: Teacher) -> TypeGuard[TextTeacher]:
    """Whether a teacher reads and returns text, which the student's tokenizer tokenizes."""
    return teacher.capabilities.reads == "text"
