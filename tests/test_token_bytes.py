"""The bytes of tokens: those of a text's tokens are the text, for each way to write tokens."""

from __future__ import annotations

import pytest
from conftest import SPECIAL, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_distill.embedded import embedded_path
from trl_distill.token_bytes import token_bytes

TEXTS = ["a b", "naïve 東京\n\tx", "🙂 <0x41>", " two  spaces ", "▁"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """Return a tokenizer as Llama 2's: a space is "▁", and what it has no token for is bytes."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abAx", "▁a"]
    merges = [("▁", "a")]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")


def joined(tokenizer, text: str) -> bytes:
    """Return the bytes of a text's tokens."""
    table = token_bytes(tokenizer)
    return b"".join(table[i] or b"" for i in tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [make_tokenizer, sentencepiece])
def test_the_bytes_of_a_texts_tokens_are_the_text(make, text):
    expected = text.replace("▁", " ") if make is sentencepiece else text  # to sentencepiece both are a space
    assert joined(make(), text) == expected.encode()


def test_a_space_that_a_tokenizer_puts_in_front_is_in_its_token():
    assert joined(AutoTokenizer.from_pretrained(embedded_path()), "red cat") == b" red cat"


TOKENIZER = make_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
@settings(max_examples=50, deadline=None)
def test_any_text_comes_back(text):
    assert joined(TOKENIZER, text) == text.encode()


def test_special_tokens_have_none_and_added_ones_their_text():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("Ġé", special=False)])
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer)
    assert [table[i] for i in tokenizer.convert_tokens_to_ids(SPECIAL)] == [None] * len(SPECIAL)
    assert table[-1] == "Ġé".encode()  # an added token is text as it stands, not letters for bytes


def test_a_byte_and_its_character_are_two_tokens_of_the_same_bytes():
    tokenizer = sentencepiece()
    table = token_bytes(tokenizer)
    both = [i for i, piece in enumerate(table) if piece == b"A"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in both] == ["<0x41>", "A"]
