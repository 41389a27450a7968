"""Control characters of others are written out for a terminal."""

from __future__ import annotations

import unicodedata

import pytest

from trl_distill.errors import printable


def test_a_terminal_gets_no_control_character():
    every = "".join(map(chr, range(0x110000)))
    shown = printable(every)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} == {"\n", "\t"}
    bidirectional = {c for c in every if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF")}
    isolates = {c for c in every if unicodedata.bidirectional(c) in ("LRI", "RLI", "FSI", "PDI")}
    assert len(bidirectional | isolates) == 9
    assert not (bidirectional | isolates) & set(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("over\rwritten\r\n", "over\\rwritten\\r\n"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("user\u202enimda\u2066", r"user\u202enimda\u2066"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("\ud800 \U000e0041", r"\ud800 \U000e0041"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_text_stays_as_it_is():
    text = "Grüße,\n\t漢字 العربية 👩‍👩‍👧 می‌خواهم `a\\x1b`"
    assert printable(text) == text
