"""A local teacher that gives text only: a causal model with another tokenizer than its student.

Its own tokenizer reads the prompts and turns what it writes into text; the student's splits the text into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...config.setting_names import name_settings
from ...errors import DataError, TeacherError
from ...models.generation import Completion, GenerationSettings
from ...prompts.rendering import Prompt
from ...prompts.tokenization import tokenize_prompt
from ..base import Teacher, TextTeacher
from ..completions.generate import complete
from ..completions.store import CompletionStore
from ..local.model import LocalModel

SHOWN = 40  # characters of a prompt in a message


class LocalTextTeacher(TextTeacher):
    """A local model that writes completions as text; without `tokenizer`, the student's, it has its own.

    Raises:
        TeacherError: The writer's tokenizer has no words, as one that transformers makes up for a folder without any.
    """

    def __init__(self, writer: LocalModel | Teacher, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        own = writer.tokenizer
        if len({*own.get_vocab()} - {*own.all_special_tokens} - {*own.get_added_vocab()}) < 2:
            raise TeacherError(
                f"teacher_model {writer.name!r} has a tokenizer with an empty vocabulary; save the model's own next "
                f"to it."
            )
        super().__init__(writer.name, tokenizer=writer.tokenizer if tokenizer is None else tokenizer)
        self.writer = writer
        self.options: dict[str, Any] = {}  # keywords of its chat template

    def identity(self) -> dict[str, object]:
        """The model's own identity: its completions are stored as its own token ids, for any student."""
        return self.writer.identity()

    def describe(self) -> str:
        compare = name_settings("add --cross-tokenizer to compare the distributions")
        return f"{self.name}, with another tokenizer than the student's; {compare}"

    def write(
        self,
        prompts: Sequence[Prompt],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Return one completion (its `text`) for each prompt, in the order given; see `complete`.

        Raises:
            DataError: A prompt that is longer than the model reads.
            TeacherError: Chat messages without a chat template.
            KeyboardInterrupt: Ctrl-C; its text says where the completions written so far are kept.
        """
        read = [self._prompt_ids(prompt) for prompt in prompts]
        written = complete(self.writer, read, settings, store=store, progress=progress)
        return [
            Completion((), done.finished, self.decode(ids, done.without_end))
            for ids, done in zip(read, written, strict=True)
        ]

    def unload(self) -> None:
        if isinstance(self.writer, LocalModel):
            self.writer.unload()

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that a prompt may have; a causal model needs room for one more."""
        limit: int | None = getattr(self.writer, "length_limit", None)
        return None if limit is None else limit - 1

    def tokenize(self, prompt: Prompt) -> list[int]:
        return tokenize_prompt(self.writer.tokenizer, prompt, self.options)

    def decode(self, prompt: list[int], ids: list[int]) -> str:
        """Return what was written behind a prompt (both token ids) as text.

        Some tokenizers (SentencePiece) drop the space that a text begins with, unless its prompt stands before it.
        """
        before, whole = self.text_of(prompt), self.text_of([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.text_of(ids)

    def text_of(self, ids: list[int]) -> str:
        return str(self.writer.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; raise an error for one that the model cannot read."""
        if not isinstance(prompt, str) and self.writer.tokenizer.chat_template is None:
            raise TeacherError(
                f"teacher_model {self.name!r} is given a prompt of chat messages, and its tokenizer has no chat "
                "template; give a text template and rows of text, or a teacher with a chat template."
            )
        ids, limit = self.tokenize(prompt), self.prompt_limit
        if limit is not None and len(ids) > limit:
            shown = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            raise DataError(
                f"teacher_model {self.name!r} reads at most {limit:,} tokens and the prompt {shown[:SHOWN]!r}... has "
                f"{len(ids):,}; shorten the template or the input."
            )
        if not ids:
            raise DataError(f"teacher_model {self.name!r} is given an empty prompt; give a template with some text.")
        return ids
