"""The pieces of a completion's tokens are its text, for tokenizers of several kinds."""

from __future__ import annotations

import pytest
from tokenizing import byte_level, llama, pieces
from transformers import AutoTokenizer

from trl_distill.embedded import embedded_path
from trl_distill.evaluation.pieces import token_pieces

TEXTS = ["the lazy dog", "Grüße  aus Köln, déjà vu", "東京 は 首都 です", "x\n\n\treturn 42", "👩‍🔬 日 é", " the"]
KINDS = {
    "byte level": byte_level, "byte level with a space in front": lambda: byte_level(prefix=True), "llama": llama,
    "sentencepiece": lambda: pieces(scheme="first"),
    "embedded": lambda: AutoTokenizer.from_pretrained(embedded_path()),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_joined_are_the_text(kind, text):
    tokenizer = KINDS[kind]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = token_pieces(tokenizer, ids)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_half_a_character_at_the_end_is_shown():
    tokenizer = byte_level()
    ids = tokenizer("a日")["input_ids"][:-1]
    assert token_pieces(tokenizer, ids)[-1] == "\ufffd"
