"""Matches the tokens that a server wrote under its tokenizer to the student's by the bytes they cover, not by position.

A position has targets if a token of the teacher's and the student's token cover the same bytes of the completion. The
teacher's alternatives are then the student's tokens of the same bytes; one that the student lacks stays in the tail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from ...data.cross_tokenizer.byte_spans import token_spans
from .scored_rows import ScoredRow, merged, pack

OPENING, CLOSING = 8, 2  # tokens at most before reasoning ("<think>", a newline) and behind a text (its end, a newline)
Pieces = Sequence[bytes | None]


class ByteMatcher:
    """A student's tokens by their bytes.

    Args:
        table: Bytes of the student's tokens by id, see `token_bytes`.
        vocabulary: Rows of the student's vocabulary.
    """

    def __init__(self, table: Pieces, vocabulary: int) -> None:
        self.table, self.vocabulary = table, vocabulary
        # sentencepiece has a byte and its character apart: the character comes later and is what it writes
        self.ids = {piece: i for i, piece in enumerate(table[:vocabulary]) if piece}

    def match(self, entry: Mapping[str, Any], completion: Sequence[int], reasoning: str = "") -> ScoredRow:
        """Return what is known of a completion's tokens.

        Args:
            entry: `text`, `finished`, and what `logprob_format.read_top` read.
            completion: The text's ids under the student's tokenizer, with what stands around it: reasoning before it,
                the token that ends it.
            reasoning: What the completion holds of the teacher's reasoning.
        """
        text = entry["text"].encode()
        tokens = [None if token is None else token.encode("latin-1") for token in entry["tokens"]]
        pieces = [self.table[i] if i < len(self.table) else None for i in completion]
        theirs, mine = at_end(tokens, text), within(pieces, entry["text"])
        same: dict[int, int] = {}  # by the student's token the teacher's of the same bytes
        if reasoning:  # first: if it repeats the text, the text counts
            same |= at_start(pieces, reasoning.encode()).same_as(at_start(tokens, reasoning.encode()))
        same |= mine.same_as(theirs)
        ends = bool(entry["finished"]) and theirs.end == mine.end == len(text) > 0
        if ends and theirs.after == len(tokens) - 1 and mine.after < len(completion):
            same[mine.after] = theirs.after
        known: list[list[tuple[int, float]]] = [[] for _ in completion]
        for place, at in same.items():
            given = ((latin.encode("latin-1"), log_prob) for latin, log_prob in entry["alternatives"][at])
            # the token that both wrote is the student's, whatever either calls it
            ids = ((completion[place] if b == tokens[at] else self.ids.get(b), log_prob) for b, log_prob in given)
            known[place] = merged([(i, log_prob) for i, log_prob in ids if i is not None])
        return pack(known, vocabulary=self.vocabulary)


class TokenRun(NamedTuple):
    """Consecutive tokens that make up a text.

    Attributes:
        first: The first of them.
        spans: Begin and end of each in the text.
    """

    first: int
    spans: list[tuple[int, int]]

    @property
    def end(self) -> int:
        """How much of the text they cover from its beginning."""
        return self.spans[-1][1] if self.spans else 0

    @property
    def after(self) -> int:
        """The first token behind them."""
        return self.first + len(self.spans)

    def same_as(self, other: TokenRun) -> dict[int, int]:
        """Return by token the one of another run that covers the same bytes."""
        theirs = {span: other.first + n for n, span in enumerate(other.spans)}
        return {self.first + n: theirs[span] for n, span in enumerate(self.spans) if span in theirs}


def at_end(pieces: Pieces, text: bytes) -> TokenRun:
    """Return the tokens that make up a text: from the first on, or if others come before it, the last that do.

    Servers log the tokens of the reasoning before those of the completion, and the student may learn both.
    """
    run = TokenRun(0, token_spans(pieces, text))
    if run.end < len(text):
        ends = list(accumulate((len(piece or b"") for piece in pieces), initial=0))
        for first in range(len(pieces) - 1, 0, -1):
            # only tokens of as many bytes can be the text, so that few of a million are compared with it
            sizes = {end - ends[first] for end in ends[-1 - CLOSING :]}
            if not pieces[first] or sizes.isdisjoint((len(text), len(text) + 1)):
                continue
            later = TokenRun(first, token_spans(pieces[first:], text))
            if later.end == len(text) and len(pieces) - later.after <= CLOSING:
                return later
    return run


def within(pieces: Pieces, text: str) -> TokenRun:
    """Return the student's tokens of a text, or of what is left of it if its chat template trims white space."""
    whole = text.encode()
    for words in dict.fromkeys((text, text.rstrip(), text.lstrip(), text.strip())):
        run, trimmed = at_end(pieces, words.encode()), len(whole) - len(text[text.index(words) :].encode())
        if run.end == len(words.encode()):
            return TokenRun(run.first, [(begin + trimmed, end + trimmed) for begin, end in run.spans])
    return at_end(pieces, whole)


def at_start(pieces: Pieces, text: bytes) -> TokenRun:
    """Return the tokens that make up a text near the beginning, with a few before them that may open it."""
    runs = (TokenRun(first, token_spans(pieces[first:], text)) for first in range(min(OPENING, len(pieces))))
    return next((run for run in runs if run.end == len(text)), TokenRun(0, []))
