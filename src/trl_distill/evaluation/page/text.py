"""Text of models and data for the page, escaped and cut: invisible characters and direction marks are spelled out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import groupby

from markupsafe import Markup, escape

from ...errors import HIDDEN

NEWLINES = re.compile(r"(?:\r?\n){4,}")
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
LEAST_IN_COMMON = 0.3  # below this two texts are different as a whole, and marks in them would say nothing


def cut(text: str, characters: int) -> tuple[str, int]:
    """Return the start of a text and how many characters were cut from its end."""
    return (text, 0) if len(text) <= characters else (text[:characters], len(text) - characters)


def visible(text: str) -> Markup:
    """Return a text escaped for HTML, with what cannot be seen in it written out.

    A newline is an arrow and a new line, more than three in a row are counted; other control characters are Unicode's
    pictures of them or their code points, so that none of them works.
    """
    parts, start = [], 0
    for found in NEWLINES.finditer(text):
        count = found[0].count("\n")
        parts += [_spelled(text[start : found.start()]), Markup('<i class="mark">↵ × {}</i>\n').format(count)]
        start = found.end()
    return Markup("").join([*parts, _spelled(text[start:])])


def plainly_visible(text: str) -> str:
    """Return the same as plain text, for an attribute or a title."""
    return HIDDEN.sub(lambda found: _name(found[0]).rstrip("\n"), text)


def _spelled(text: str) -> Markup:
    pieces, start = [], 0
    for found in HIDDEN.finditer(text):
        pieces.append(escape(text[start : found.start()]))
        name = _name(found[0])
        pieces.append(Markup('<i class="mark">{}</i>{}').format(name.rstrip("\n"), "\n" if name.endswith("\n") else ""))
        start = found.end()
    return Markup("").join([*pieces, escape(text[start:])])


def _name(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "⇥"
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def with_differences(text: str, other: str, tag: str) -> Markup:
    """Return a text for HTML whose words that another text does not have in that place are marked.

    Args:
        text: What is shown.
        other: What it is compared with.
        tag: The element around what differs: "ins" if the text was written, "del" if it is what should have been.
    """
    if not text or text == other:
        return visible(text)
    parts = []
    for differs, words in _compared(text, other, is_target=tag == "del"):
        shown = visible(words)
        parts.append(Markup("<{0}>{1}</{0}>").format(tag, shown) if differs else shown)
    return Markup("").join(parts)


def similarity(text: str, other: str) -> float:
    """Return how much of two texts is the same, by words: 0 to 1."""
    return SequenceMatcher(None, WORDS.findall(text), WORDS.findall(other), autojunk=False).ratio()


def _compared(text: str, other: str, *, is_target: bool) -> Iterator[tuple[bool, str]]:
    """Yield the text in pieces, and whether each differs from what the other has there; white space alone does not."""
    pieces = WORDS.findall(text)
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()]
    mine = [pieces[place] for place in places]
    theirs = [piece for piece in WORDS.findall(other) if not piece.isspace()]
    # always the target first, so that both texts are matched in one way
    matcher = SequenceMatcher(None, *((mine, theirs) if is_target else (theirs, mine)), autojunk=False)
    if not places or matcher.ratio() < LEAST_IN_COMMON:
        yield True, text
        return
    differ = [False] * len(pieces)
    for kind, *ends in matcher.get_opcodes():
        start, end = ends[:2] if is_target else ends[2:]
        if kind != "equal" and end > start:  # with the white space between its words
            differ[places[start] : places[end - 1] + 1] = [True] * (places[end - 1] + 1 - places[start])
    for differs, group in groupby(range(len(pieces)), key=differ.__getitem__):
        yield differs, "".join(pieces[place] for place in group)
