"""Tokenization of prompts with a common prefix, which is tokenized once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .chat_template import ChatTemplate, Options
from .messages import Prompt
from .text_ids import text_ids
from .tokenization import common_length, prompt_ids, without_closing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAST = 32  # tokens in common below which nothing is gained
MARGIN = 8  # tokens between the cut and the first character in which prompts differ: it cannot reach back over them
TRIES = 16  # places for the cut


class Start(NamedTuple):
    """A common prefix: its text with the margin, and how many of its characters have which ids."""

    text: str
    cut: int
    ids: list[int]


class PromptTokens:
    """Tokenizes prompts as `tokenize_prompt` does.

    What the first two prompts have in common is cut at an edge between tokens at which both parts, tokenized apart,
    give the ids of the whole. Later prompts with the same beginning are tokenized from there on. If there is no such
    edge, as with SentencePiece's space in front of every text, each prompt is tokenized whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._first: tuple[str, bool] | None = None
        self._start: Start | None = None
        self._tried = False

    def __call__(self, prompt: Prompt, options: Options | None = None) -> list[int]:
        """Return the ids of a prompt; see `tokenize_prompt`."""
        return self.of_text(*ChatTemplate(self.tokenizer).render_prompt(prompt, options))

    def of_text(self, text: str, special: bool) -> list[int]:
        """Return the ids of a rendered prompt; see `prompt_ids`."""
        start = self._start
        if start is not None and text.startswith(start.text):
            rest = text_ids(self.tokenizer, text[start.cut :])
            return without_closing(self.tokenizer, [*start.ids, *rest], text) if special else [*start.ids, *rest]
        ids = prompt_ids(self.tokenizer, text, special)
        if not self._tried and self._first is not None and self._first[1] == special and self._first[0] != text:
            self._tried = True
            self._start = self._find(text[: common_length(self._first[0], text)], text, ids, special)
        self._first = text, special
        return ids

    def _find(self, common: str, text: str, ids: list[int], special: bool) -> Start | None:
        """Return the start of a prompt that has `common` in common with another; None if that saves nothing."""
        if not self.tokenizer.is_fast:
            return None
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        edges = encoded["offset_mapping"]
        if list(encoded["input_ids"])[: len(ids)] != ids:
            return None
        inside = sum(stop <= len(common) for _, stop in edges[: len(ids)])
        for k in range(inside - MARGIN, max(LEAST, inside - MARGIN - TRIES), -1):
            cut = edges[k][0]
            rest = list(self.tokenizer(text[cut:], add_special_tokens=False)["input_ids"])
            if edges[k - 1][1] <= cut and [*ids[:k], *rest] == ids:
                return Start(common, cut, ids[:k])
        return None
