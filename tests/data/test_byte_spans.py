"""Spans: the smallest stretches of a completion's bytes that both tokenizers delimit."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizing import byte_level, llama, pieces

from trl_distill.data.cross_tokenizer.byte_spans import (
    ALIKE,
    STUDENT_SPACE,
    TEACHER_SPACE,
    ByteSpan,
    align,
    token_spans,
)
from trl_distill.data.cross_tokenizer.token_bytes import token_bytes

MAKERS = {"byte-level": byte_level, "larger": lambda: byte_level(size=400), "unigram": pieces, "llama": llama}
SIDES = {name: (tokenizer, token_bytes(tokenizer)) for name, make in MAKERS.items() for tokenizer in [make()]}
TEXT = st.text(st.sampled_from("the quick東京🎉é\n "), min_size=1, max_size=30)


def split(name, text):
    tokenizer, of = SIDES[name]
    return [of[i] for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def bounds(tokens):
    return set(accumulate(map(len, tokens), initial=0))


@settings(max_examples=150, deadline=None)
@given(TEXT, st.sampled_from(list(SIDES)), st.sampled_from(["byte-level", "larger", "unigram"]))
def test_spans_cover_the_text_and_end_at_every_bound_that_both_have(text, first, second):
    mine, theirs = split(first, text), split(second, text)
    spans, whole = align(mine, theirs)
    assert whole
    left = mine
    if first == "llama":
        left = [mine[0][1:], *mine[1:]]  # its space in front
    joined = [(b"".join(left[slice(*span.student)]), b"".join(theirs[slice(*span.teacher)])) for span in spans]
    assert all(a == b != b"" for a, b in joined)
    assert b"".join(a for a, _ in joined) == text.encode()
    assert set(accumulate((len(a) for a, _ in joined), initial=0)) == bounds(left) & bounds(theirs)
    places = [(*span.student, *span.teacher) for span in spans]
    assert all(a[1] == b[0] and a[3] == b[2] for a, b in pairwise(places))


@settings(max_examples=50, deadline=None)
@given(TEXT, st.sampled_from(list(SIDES)))
def test_equal_tokenizers_have_one_token_a_span(text, name):
    tokens = split(name, text)
    spans, whole = align(tokens, tokens)
    assert whole
    assert spans == [ByteSpan((k, k + 1), (k, k + 1)) for k in range(len(tokens))]


@pytest.mark.parametrize(
    ("student", "teacher", "expected", "whole"),
    [
        ([b"ab", b"c"], [b"a", b"bc"], [ByteSpan((0, 2), (0, 2))], True),
        ([b"ab", b"c"], [b"ab", b"c"], [ByteSpan((0, 1), (0, 1)), ByteSpan((1, 2), (1, 2))], True),
        ([b" ab", b"c"], [b"ab", b"c"], [ByteSpan((0, 1), (0, 1), STUDENT_SPACE), ByteSpan((1, 2), (1, 2))], True),
        ([b"ab", b"c"], [b" ab", b"c"], [ByteSpan((0, 1), (0, 1), TEACHER_SPACE), ByteSpan((1, 2), (1, 2))], True),
        ([b" ", b"ab"], [b"ab"], [ByteSpan((1, 2), (0, 1))], True),  # the space is a token: both have read nothing else
        ([b"  ab"], [b" ab"], [ByteSpan((0, 1), (0, 1), STUDENT_SPACE)], True),
        ([b" ", b"\n"], [b"\n"], [ByteSpan((1, 2), (0, 1))], True),
        ([b" ab"], [b"x"], [], False),
        ([b"ab", b"C"], [b"ab", b"c"], [ByteSpan((0, 1), (0, 1))], False),
        ([b"ab", None, b"c"], [b"ab", b"c"], [ByteSpan((0, 1), (0, 1))], False),
        ([], [], [], True),
    ],
)  # fmt: skip
def test_byte_spans_by_hand(student, teacher, expected, whole):
    assert align(student, teacher) == (expected, whole)
    assert all(span.kind == ALIKE for span in expected[1:])


def test_a_space_in_front_of_a_text_is_before_it():
    assert token_spans([b" red", b" cat"], b"red cat") == [(-1, 3), (3, 7)]
    assert token_spans([b"red", b" cat"], b"red cat") == [(0, 3), (3, 7)]
    assert token_spans([b" red"], b" red") == [(0, 4)]
    assert token_spans([b" ", b" red"], b" red") == [(-1, 0), (0, 4)]
    assert token_spans([b"red", None, b" cat"], b"red cat") == [(0, 3)]
    assert token_spans([], b"red") == []
