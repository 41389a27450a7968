"""The bytes of tokens, which make tokens of different tokenizers comparable."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK = "▁"  # SentencePiece's space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """Return the bytes of each token, by id; None for special tokens and unused ids.

    The bytes of an encoding's tokens, joined, are the UTF-8 bytes of the text as the tokenizer has normalised it, with
    the space in front that some tokenizers add. A token may hold a part of a character.

    Args:
        tokenizer: Byte-level BPE (GPT-2, Llama 3, Qwen) or sentencepiece with or without byte pieces (Llama 2, Gemma).
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    of_text = _byte_level if _writes_bytes(tokenizer, vocabulary) else _piece
    found: list[bytes | None] = [None] * (1 + max(vocabulary.values(), default=-1))
    for token, index in vocabulary.items():
        found[index] = of_text(token) or None
    for index, added in tokenizer.added_tokens_decoder.items():
        if index < len(found):  # written as it stands, outside of the scheme
            found[index] = None if added.special else added.content.encode()
    for index in tokenizer.all_special_ids:
        if index < len(found):
            found[index] = None
    return found


@cache
def _byte_of_letter() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}


def _byte_level(token: str) -> bytes:
    """Return the bytes of a token whose letters stand for one byte each, or the bytes of its text."""
    table = _byte_of_letter()
    return bytes(table[letter] for letter in token) if all(letter in table for letter in token) else token.encode()


def _piece(token: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(BLANK, " ").encode()


def _writes_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int]) -> bool:
    """Whether letters of its tokens stand for bytes; a tokenizer without a description is judged by its tokens."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        described = json.loads(backend.to_str())
        parts = [part for part in (described["decoder"], described["pre_tokenizer"]) if part]
        if parts:
            return '"type": "ByteLevel"' in json.dumps(parts)
    spaced = [sum(token.startswith(mark) for token in vocabulary) for mark in ("Ġ", BLANK)]
    return spaced[0] > spaced[1]
