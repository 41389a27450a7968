"""The text piece of each token of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL = "\ufffd"  # what a decoder writes for bytes that are no character yet
MOST_BYTES = 4  # of a character in UTF-8


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the text that each token adds; joined, they are the whole text.

    A character of several tokens stands at the last of them, and the others are empty.
    """
    pieces: list[str] = []
    context = group = 0  # where the tokens of the last character, and those of the one being read, begin
    before = ""
    for end in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[context:end])  # whether a space is in front depends on what stands there
        if text.endswith(PARTIAL) and end < len(ids) and end - group < MOST_BYTES:
            pieces.append("")
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else text)
        context, group = group, end
        before = _decoded(tokenizer, ids[context:end])
    return tuple(pieces)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
