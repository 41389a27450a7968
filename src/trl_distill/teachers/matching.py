"""Tokens that a server wrote under its tokenizer, matched to the student's by the bytes they cover, never by position.

A position has targets where the teacher's token and the student's cover the same bytes of the completion. There the
teacher's alternatives are the student's tokens of the same bytes; one that the student does not have stays in the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .scored import ScoredRow, merged, pack

Span = tuple[int, int]


class Matcher:
    """A student's tokens by their bytes.

    Args:
        table: Bytes of the student's tokens by id, see `token_bytes`.
        vocabulary: Rows of the student's vocabulary.
    """

    def __init__(self, table: Sequence[bytes | None], vocabulary: int) -> None:
        self.table, self.vocabulary = table, vocabulary
        # sentencepiece has a byte and its character apart: the character comes later and is what it writes
        self.ids = {piece: i for i, piece in enumerate(table[:vocabulary]) if piece}

    def match(self, entry: dict[str, Any], completion: Sequence[int]) -> ScoredRow:
        """Return what is known of a completion's tokens.

        Args:
            entry: `text`, `finished`, and what `logprobs.read_top` read.
            completion: The text's ids under the student's tokenizer, with the token that ends it; it may be cut.
        """
        text = entry["text"].encode()
        tokens = [None if token is None else token.encode("latin-1") for token in entry["tokens"]]
        theirs = spans(tokens, text)
        mine = spans([self._piece(i) for i in completion], text)
        at = {span: place for place, span in enumerate(theirs)}
        ids: list[list[int]] = [[] for _ in completion]
        log_probs: list[list[float]] = [[] for _ in completion]

        def put(place: int, pairs: list[tuple[int, float]]) -> None:
            ids[place], log_probs[place] = [i for i, _ in pairs], [p for _, p in pairs]

        for place, span in enumerate(mine):
            if span in at:
                same = {tokens[at[span]]: completion[place]}
                put(place, self._alternatives(entry["alternatives"][at[span]], same))
        ended = bool(mine) and mine[-1][1] == len(text) and len(completion) == len(mine) + 1
        if ended and self._ends(entry, theirs, tokens, text):
            same = {tokens[-1]: completion[-1]}  # both end here, whatever either calls it
            put(len(mine), self._alternatives(entry["alternatives"][-1], same))
        return pack(ids, log_probs, vocabulary=self.vocabulary)

    def _piece(self, index: int) -> bytes | None:
        """Return the bytes of one of the student's tokens."""
        return self.table[index] if index < len(self.table) else None

    def _alternatives(
        self, given: Sequence[tuple[str, float]], same: dict[bytes | None, int]
    ) -> list[tuple[int, float]]:
        """Return the student's tokens of the same bytes; `same` has those whose id is known from the completion."""
        pairs = []
        for latin, log_prob in given:
            piece = latin.encode("latin-1")
            token = same.get(piece, self.ids.get(piece))
            if token is not None:
                pairs.append((token, log_prob))
        return merged(pairs)

    @staticmethod
    def _ends(entry: dict[str, Any], theirs: list[Span], tokens: list[bytes | None], text: bytes) -> bool:
        """Whether the server tells of the token that ended the text: one more than those that the text is made of."""
        whole = bool(theirs) and theirs[-1][1] == len(text)
        return bool(entry["finished"]) and whole and len(tokens) == len(theirs) + 1


def spans(pieces: Sequence[bytes | None], text: bytes) -> list[Span]:
    """Return begin and end in a text of the tokens it is made of, as far as they follow each other.

    A space that a tokenizer puts in front of a text begins at -1.

    Args:
        pieces: The tokens' bytes.
        text: The text.
    """
    plain, opened = _walk(pieces, text), _walk(pieces, b" " + text)
    return [(begin - 1, end - 1) for begin, end in opened] if len(opened) > len(plain) else plain


def _walk(pieces: Sequence[bytes | None], whole: bytes) -> list[Span]:
    """Return begin and end of the tokens that follow each other from the beginning."""
    found: list[Span] = []
    place = 0
    for piece in pieces:
        if not piece or not whole.startswith(piece, place):
            break
        found.append((place, place + len(piece)))
        place += len(piece)
    return found
