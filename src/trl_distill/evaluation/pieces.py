"""The text that each token of a completion adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTIAL = "\ufffd"  # what a decoder writes for bytes that are no character yet


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Return what each token adds to the text; joined, they are the text.

    A character of several tokens stands at the last of them, and the others are empty.
    """
    pieces, before, start = [], "", 0
    for end in range(1, len(ids) + 1):
        text = str(tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False))
        if text.endswith(PARTIAL) and end < len(ids) and end - start < 16:
            pieces.append("")
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else text)
        # the next one is decoded behind this one alone: whether a space is in front of it depends on that
        start = end - 1
        before = str(tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False))
        if before.endswith(PARTIAL) or PARTIAL in before:
            start, before = end, ""
    return tuple(pieces)
