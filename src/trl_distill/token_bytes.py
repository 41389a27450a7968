"""What each token of a tokenizer stands for in bytes, so that tokens of two tokenizers can be told to be the same.

Byte-level BPE writes a byte as one character of an alphabet of its own (GPT-2's); sentencepiece writes a space as "▁"
and a byte that is no text as "<0x0A>".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """Return the bytes of each token by id; None for an id without a token and for special tokens.

    A token that opens a word has its space in front, whether or not decoding a text takes that space off.

    Args:
        tokenizer: A byte-level or sentencepiece one; of others the tokens' own text is taken.
    """
    vocabulary = tokenizer.get_vocab()
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    plain = _bytes_of(tokenizer)
    for token, index in vocabulary.items():
        table[index] = plain(token)
    special = set(tokenizer.all_special_ids)
    for index, added in tokenizer.added_tokens_decoder.items():
        table[index] = None if added.special else str(added.content).encode()  # text as it stands, never in pieces
    return [None if index in special else piece for index, piece in enumerate(table)]


def _bytes_of(tokenizer: Any) -> Callable[[str], bytes | None]:
    """Return the function from a token's text to its bytes, by how the tokenizer decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kinds = set() if backend is None else _kinds(json.loads(backend.to_str()).get("decoder"))
    if "ByteLevel" in kinds or hasattr(tokenizer, "byte_decoder"):
        return _byte_level
    if "WordPiece" in kinds:
        return lambda token: token.removeprefix("##").encode()
    return _sentencepiece


def _kinds(decoder: Any) -> set[str]:
    """Return the types in a decoder of the tokenizers library, those of a sequence too."""
    if not decoder:
        return set()
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level BPE stands for: printable Latin-1 for itself, then from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    own = {chr(byte): byte for byte in printable}
    return own | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET = _alphabet()


def _byte_level(token: str) -> bytes | None:
    """Return the bytes of a byte-level token; None where it is written in other characters."""
    found = [ALPHABET.get(character) for character in token]
    return None if None in found else bytes(byte for byte in found if byte is not None)


def _sentencepiece(token: str) -> bytes | None:
    """Return the bytes of a sentencepiece token."""
    byte = BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
