"""A local teacher that gives text only: an encoder-decoder, or a causal model with another tokenizer than its student.

Its own tokenizer reads the prompts and turns what it writes into text; the student's cuts the text into tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...config.doors import spelled
from ...errors import DataError, TeacherError
from ...models.generation import Completion, GenerationSettings
from ...prompts.chat_template import ChatTemplate
from ...prompts.tokenization import tokenize_prompt
from ..base import Teacher
from ..completions.generate import complete
from ..completions.store import CompletionStore
from ..local.teacher import LocalTeacher
from .base import TextOnly
from .encoder_decoder import EncoderDecoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN = 40  # characters of a prompt in a message


class LocalTextTeacher(TextOnly):
    """A local model that writes completions as text.

    Args:
        writer: An encoder-decoder, or a teacher that is a causal model.
        tokenizer: The student's; None takes the writer's own.

    Raises:
        TeacherError: The writer's tokenizer has no words, as one that transformers makes up for a folder without any.
    """

    def __init__(self, writer: EncoderDecoder | Teacher, *, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        own = writer.tokenizer
        if len({*own.get_vocab()} - {*own.all_special_tokens} - {*own.get_added_vocab()}) < 2:
            raise TeacherError(
                f"teacher_model {writer.name!r} has a tokenizer without words; save the model's own beside it."
            )
        super().__init__(writer.name, tokenizer=writer.tokenizer if tokenizer is None else tokenizer)
        self.writer = writer
        self.options: Mapping[str, Any] = {}  # keywords of its chat template

    def identity(self) -> dict[str, Any]:
        """The writer's: what it wrote is kept as its own token ids, whoever learns from it."""
        return self.writer.identity()

    def describe(self) -> str:
        """Say which model it is and why it gives text only."""
        if isinstance(self.writer, EncoderDecoder):
            return f"{self.name}, an encoder-decoder ({self.writer.config.model_type})"
        compare = spelled("add --cross-tokenizer to compare the distributions")
        return f"{self.name}, with another tokenizer than the student's; {compare}"

    def write(
        self,
        prompts: Sequence[str | list[dict[str, Any]]],
        settings: GenerationSettings,
        *,
        store: CompletionStore | None = None,
        progress: bool = True,
    ) -> list[Completion]:
        """Return one completion (its `text`) for each prompt, in the order given; see `complete`.

        Args:
            prompts: Text, or chat messages where the model's tokenizer has a chat template.
            settings: How it writes.
            store: Where completions are kept from one run to the next; None keeps them in memory.
            progress: Whether to show a progress bar.

        Raises:
            DataError: A prompt that is longer than the model reads.
            TeacherError: Chat messages without a chat template.
            KeyboardInterrupt: Ctrl-C; its text says where the completions written so far are kept.
        """
        read = [self._read(prompt) for prompt in prompts]
        written = complete(self.writer, read, settings, store=store, progress=progress)
        return [
            Completion((), completion.finished, self._text(ids, completion))
            for ids, completion in zip(read, written, strict=True)
        ]

    def rest(self) -> None:
        """Give the model's memory back; it is loaded again should it be asked for more."""
        vars(self.writer).pop("model", None)
        if isinstance(self.writer, LocalTeacher):
            self.writer.prefix.forget()

    def _read(self, prompt: str | list[dict[str, Any]]) -> list[int]:
        """Return the model's own ids of a prompt."""
        own, encodes = self.writer.tokenizer, isinstance(self.writer, EncoderDecoder)
        if not isinstance(prompt, str) and own.chat_template is None:
            raise TeacherError(
                f"teacher_model {self.name!r} is given a prompt of chat messages, and its tokenizer has no chat "
                "template; give a text template and rows of text, or a teacher with a chat template."
            )
        if not encodes:
            ids = tokenize_prompt(own, prompt, self.options)
        elif isinstance(prompt, str):
            ids = list(own(prompt)["input_ids"])  # an encoder reads the token that ends its text
        else:
            text = ChatTemplate(own).render(prompt, self.options, opening=True)
            ids = list(own(text, add_special_tokens=False)["input_ids"])
        most = self._most()
        if most is not None and len(ids) > most:
            shown = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
            raise DataError(
                f"teacher_model {self.name!r} reads at most {most:,} tokens and the prompt {shown[:SHOWN]!r}... has "
                f"{len(ids):,}; shorten the template or the input."
            )
        if not ids:
            raise DataError(f"teacher_model {self.name!r} is given an empty prompt; give a template with some text.")
        return ids

    def _most(self) -> int | None:
        """Return how many tokens a prompt may have; a causal model needs room for one more."""
        if isinstance(self.writer, EncoderDecoder):
            return self.writer.prompt_limit
        return None if self.writer.length_limit is None else self.writer.length_limit - 1

    def _text(self, prompt: list[int], completion: Completion) -> str:
        """Return what was written as text, without the token that ended it."""
        own = self.writer.tokenizer
        ids = list(completion.ids[:-1] if completion.finished else completion.ids)

        def decode(tokens: list[int]) -> str:
            return str(own.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        if isinstance(self.writer, EncoderDecoder):
            return decode(ids)
        # behind its prompt, since some tokenizers (SentencePiece) drop the space that a text begins with
        before, whole = decode(prompt), decode([*prompt, *ids])
        return whole[len(before) :] if whole.startswith(before) else decode(ids)
