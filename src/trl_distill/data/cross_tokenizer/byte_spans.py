"""One completion in two tokenizers: the smallest byte spans with token boundaries of both.

At the start of a span both models have read the same text, so their next-token distributions can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ...prompts.tokenization import common_length

if TYPE_CHECKING:
    import torch

# which tokens write the same at the start of a span: equal bytes, or equal but for a space in front of one side's,
# where a tokenizer puts one in front of any text and the other does not
ALIKE, STUDENT_SPACE, TEACHER_SPACE = 1, 2, 3


class ByteSpan(NamedTuple):
    """Tokens `student[0]` to `student[1]` (exclusive) of one side and `teacher` of the other, and how tokens match."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    kind: int = ALIKE


def align(student: Sequence[bytes | None], teacher: Sequence[bytes | None]) -> tuple[list[ByteSpan], bool]:
    """Return the spans of a completion, in order and one after the other, and whether both sides write the same text.

    Both sides are the bytes of their tokens; None is a token without text. A space that one side alone has in front is
    left out of account. If the sides write different text (one normalises it, or has a token without bytes), the spans
    end.
    """
    mine, theirs = (list(_known(side)) for side in (student, teacher))
    kind = _space_in_front(b"".join(mine), b"".join(theirs))
    if kind == STUDENT_SPACE:
        mine[0] = mine[0][1:]
    if kind == TEACHER_SPACE:
        theirs[0] = theirs[0][1:]
    texts = b"".join(mine), b"".join(theirs)
    alike = texts[0][: common_length(*texts)]
    # by byte the token that starts there; of several the last, which alone has bytes
    starts = [{byte: k for k, byte in enumerate(_bounds(side, alike))} for side in (mine, theirs)]
    places = [(starts[0][byte], starts[1][byte]) for byte in sorted(starts[0].keys() & starts[1].keys())]
    spans = [ByteSpan((a, b), (c, d)) for (a, c), (b, d) in pairwise(places)]
    if spans and spans[0].student[0] == spans[0].teacher[0] == 0:  # else the space is a token of its own
        spans[0] = spans[0]._replace(kind=kind)
    whole = texts[0] == texts[1] and (len(mine), len(theirs)) == (len(student), len(teacher))
    return spans, whole


def token_spans(tokens: Sequence[bytes | None], text: bytes) -> list[tuple[int, int]]:
    """Return begin and end in a text of the tokens it is made of, as far as they follow each other.

    A token that is None or empty ends them. A space that a tokenizer puts in front of a text begins at -1.
    """
    plain, spaced = (_bounds((token or None for token in tokens), front + text) for front in (b"", b" "))
    shift = len(spaced) > len(plain)
    return [(begin - shift, end - shift) for begin, end in pairwise(spaced if shift else plain)]


def mark_spans(
    batch: MutableMapping[str, torch.Tensor], rows: Sequence[Mapping[str, Any]], skipped: Sequence[int]
) -> None:
    """Add to a batch `student_spans` [B, S_s], the kind of the span that starts at a token, and `teacher_spans`.

    `teacher_spans` [B, S_t] is `teacher_labels` at the teacher's tokens that start a span, and -100 elsewhere; both
    mark the same spans in the same order. `skipped` counts the tokens at the start of each row's completion that
    nothing predicts.
    """
    mine, labels = batch["labels"].new_zeros(batch["labels"].shape), batch["teacher_labels"]
    theirs = labels.new_full(labels.shape, -100)
    for b, (row, skip) in enumerate(zip(rows, skipped, strict=True)):
        first, second = len(row["student_prompt"]), len(row["teacher_prompt"])
        for s, t, kind in zip(row["student_starts"], row["teacher_starts"], row["span_kinds"], strict=True):
            if min(s, t) >= skip:
                mine[b, first + s] = kind
                theirs[b, second + t] = labels[b, second + t]
    batch["student_spans"], batch["teacher_spans"] = mine, theirs


def _known(tokens: Sequence[bytes | None]) -> list[bytes]:
    known = []
    for token in tokens:
        if token is None:
            break
        known.append(token)
    return known


def _space_in_front(mine: bytes, theirs: bytes) -> int:
    """Return which side has an extra leading space, or ALIKE."""
    texts = {ALIKE: (mine, theirs)}
    if mine.startswith(b" "):
        texts[STUDENT_SPACE] = (mine[1:], theirs)
    if theirs.startswith(b" "):
        texts[TEACHER_SPACE] = (mine, theirs[1:])
    return max(texts, key=lambda kind: (texts[kind][0] == texts[kind][1], common_length(*texts[kind]), -kind))


def _bounds(tokens: Iterable[bytes | None], text: bytes) -> list[int]:
    """Return where tokens begin in a text and where the last one ends, as far as they follow each other."""
    bounds = [0]
    for token in tokens:
        if token is None or not text.startswith(token, bounds[-1]):
            break
        bounds.append(bounds[-1] + len(token))
    return bounds
