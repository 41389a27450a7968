"""Tokens that a server wrote under its tokenizer, matched to the student's by the bytes they cover, never by position.

A position has targets where the teacher's token and the student's cover the same bytes of the completion. There the
teacher's alternatives are the student's tokens of the same bytes; one that the student does not have stays in the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .scored_rows import ScoredRow, merged, pack

Span = tuple[int, int]
OPENING, CLOSING = 8, 2  # tokens at most before reasoning ("<think>", a newline) and behind a text (its end, a newline)


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

    def match(self, entry: dict[str, Any], completion: Sequence[int], reasoning: str = "") -> ScoredRow:
        """Return what is known of a completion's tokens.

        Args:
            entry: `text`, `finished`, and what `logprob_format.read_top` read.
            completion: The text's ids under the student's tokenizer, with what stands around it: reasoning before it,
                the token that ends it.
            reasoning: What the completion holds of the teacher's reasoning.
        """
        text = entry["text"].encode()
        tokens = [None if token is None else token.encode("latin-1") for token in entry["tokens"]]
        pieces = [self._piece(i) for i in completion]
        theirs, mine = at_end(tokens, text), within(pieces, entry["text"])
        ids: list[list[int]] = [[] for _ in completion]
        log_probs: list[list[float]] = [[] for _ in completion]

        def put(place: int, at: int) -> None:
            same = {tokens[at]: completion[place]}  # both are this, whatever either calls it
            pairs = self._alternatives(entry["alternatives"][at], same)
            ids[place], log_probs[place] = [i for i, _ in pairs], [p for _, p in pairs]

        both = [(theirs, mine)]
        if reasoning:  # first: where it repeats the text, the text counts
            both.insert(0, (at_start(tokens, reasoning.encode()), at_start(pieces, reasoning.encode())))
        for one, other in both:
            at = {span: one.first + n for n, span in enumerate(one.spans)}
            for n, span in enumerate(other.spans):
                if span in at:
                    put(other.first + n, at[span])
        ends = bool(entry["finished"]) and theirs.end == mine.end == len(text) > 0
        if ends and theirs.after == len(tokens) - 1 and mine.after < len(completion):
            put(mine.after, theirs.after)
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


class Found(NamedTuple):
    """Tokens that make up a text.

    Attributes:
        first: The first of them.
        spans: Begin and end of each in the text.
    """

    first: int
    spans: list[Span]

    @property
    def end(self) -> int:
        """How much of the text they cover from its beginning."""
        return self.spans[-1][1] if self.spans else 0

    @property
    def after(self) -> int:
        """The first token behind them."""
        return self.first + len(self.spans)


def at_end(pieces: Sequence[bytes | None], text: bytes) -> Found:
    """Return the tokens that make up a text: from the first on, or if others come before it, the last that do.

    Servers log the tokens of the reasoning before those of the completion, and the student may learn both.

    Args:
        pieces: The tokens' bytes.
        text: The text.
    """
    found = Found(0, spans(pieces, text))
    if found.end < len(text):
        for first in range(len(pieces) - 1, 0, -1):
            later = Found(first, spans(pieces[first:], text))
            if later.end == len(text) and len(pieces) - later.after <= CLOSING:
                return later
    return found


def within(pieces: Sequence[bytes | None], text: str) -> Found:
    """Return the student's tokens that make up a text, or if its chat template trims white space, what is left of it.

    Args:
        pieces: The tokens' bytes.
        text: The text.
    """
    whole = text.encode()
    for words in dict.fromkeys((text, text.rstrip(), text.lstrip(), text.strip())):
        found, trimmed = at_end(pieces, words.encode()), len(whole) - len(text[text.index(words) :].encode())
        if found.end == len(words.encode()):
            return Found(found.first, [(begin + trimmed, end + trimmed) for begin, end in found.spans])
    return at_end(pieces, whole)


def at_start(pieces: Sequence[bytes | None], text: bytes) -> Found:
    """Return the tokens that make up a text near the beginning, where a few may open it."""
    for first in range(min(OPENING, len(pieces))):
        found = Found(first, spans(pieces[first:], text))
        if found.end == len(text):
            return found
    return Found(0, [])


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
