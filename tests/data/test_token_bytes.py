"""The bytes of tokens, on real tokenizers: joined they are the text's."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from tokenizing import byte_level, llama, pieces
from transformers import AutoTokenizer

from trl_distill.data.cross_tokenizer.token_bytes import token_bytes
from trl_distill.embedded import embedded_path

TEXTS = [
    "the quick fox", " a leading space", "   three", "tabs\tand\nnew lines\r\n", "Grüße, naïve café", "東京タワー 東",
    "👩‍👩‍👧 emoji 🎉 and é́ combined", "≤ ∑ «»", "a\u00a0b\u200bc", "0123 4567",
]  # fmt: skip


def written(tokenizer, text):
    of = token_bytes(tokenizer)
    return b"".join(of[i] for i in tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [byte_level, pieces], ids=["byte-level", "unigram"])
def test_the_bytes_of_tokens_join_to_the_text(make, text):
    assert written(make(), text) == text.encode()


@pytest.mark.parametrize("text", TEXTS)
def test_a_space_in_front_is_written_by_the_tokenizers_that_add_one(text):
    assert written(llama(), text) == b" " + text.encode()
    added = b"" if text.startswith(" ") else b" "
    assert written(byte_level(prefix=True), text) == added + text.encode()
    assert written(pieces(scheme="always"), text) == added + text.encode()
    assert written(AutoTokenizer.from_pretrained(embedded_path()), text) == added + text.encode()


def test_a_character_may_be_split_over_tokens():
    tokenizer = byte_level()
    of = token_bytes(tokenizer)
    parts = [of[i] for i in tokenizer("🎉")["input_ids"]]
    assert len(parts) > 1
    assert b"".join(parts) == "🎉".encode()


def test_special_tokens_have_no_bytes_and_added_tokens_their_text():
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<|turn|>", special=True)])
    of = token_bytes(tokenizer)
    assert len(of) == len(tokenizer)
    assert [of[tokenizer.convert_tokens_to_ids(t)] for t in ("<|end|>", "<|pad|>", "<|turn|>")] == [None] * 3
    assert of[tokenizer.convert_tokens_to_ids("<think>")] == b"<think>"
    assert written(tokenizer, "a <think> b") == b"a <think> b"
    assert token_bytes(llama())[0] is None
