"""What all teachers that give text have in common: servers, local models with other tokens, the data's authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import TeacherError
from ...models.generation import Completion, GenerationSettings
from ...prompts.chat_template import ChatTemplate
from ..base import Capabilities

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ...losses.signals import TeacherSignal


class TextOnly:
    """A teacher of text, with the student's tokenizer in the place of its own; by itself it gives no probabilities."""

    def __init__(self, name: str, *, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.vocabulary: int | None = None

    @property
    def capabilities(self) -> Capabilities:
        """It reads and gives text."""
        return Capabilities(
            reads="text", scores=False, dense=False, scores_unseen=False, scores_gaps=False, same_tokenizer=False
        )

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the student's vocabulary, which its completions are split into."""
        return len(self.tokenizer) if self.vocabulary is None else self.vocabulary

    @property
    def length_limit(self) -> int | None:
        """None: it counts its own tokens itself."""
        return None

    @property
    def stop_ids(self) -> list[int]:
        """The student's ids that may end a completion."""
        return ChatTemplate(self.tokenizer).end_tokens

    def restrict_vocabulary(self, vocabulary: int) -> None:
        """Take the student's vocabulary: completions become tokens of its tokenizer."""
        self.vocabulary = vocabulary

    def score(self, batch: Mapping[str, torch.Tensor]) -> TeacherSignal:
        """Raise TeacherError: there are no probabilities of the student's tokens."""
        raise TeacherError(f"teacher_model {self.name!r} gives text only and scores nothing; set --distill-alpha 0.")

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings) -> list[Completion]:
        """Raise TeacherError: it reads text, see `write`."""
        raise TeacherError(f"teacher_model {self.name!r} reads text, no token ids; have it write with write().")
