"""Token ids by a tokenizer's backend are those of its own call."""

from __future__ import annotations

import pytest
from conftest import make_model
from transformers import AutoTokenizer

from trl_distill.embedded import embedded_path
from trl_distill.prompts.text_ids import special_texts, text_ids
from trl_distill.prompts.tokenization import tokenize_completion

TEXTS = ["", " ", "a b", "The cat\n\n sat.", "<|im_start|>user\na b<|im_end|>\n", "déjà vu — 東京", "a" * 300]


def loaded(chat_model_dir):
    return {
        "embedded": AutoTokenizer.from_pretrained(embedded_path()),
        "chat": AutoTokenizer.from_pretrained(chat_model_dir),
    }


@pytest.mark.parametrize("which", ["embedded", "chat"])
@pytest.mark.parametrize("special", [False, True])
def test_text_ids_are_those_of_the_tokenizers_call(which, special, chat_model_dir):
    tokenizer = loaded(chat_model_dir)[which]
    for split in (False, True):
        tokenizer.split_special_tokens = split
        for text in TEXTS:
            wanted = tokenizer(text, add_special_tokens=special)["input_ids"]
            tokenizer("a b c d", truncation=True, max_length=2, padding="max_length")  # leaves its mark on the backend
            assert text_ids(tokenizer, text, special=special) == wanted
            assert text_ids(tokenizer, text, special=special) == wanted


def test_a_tokenizer_with_a_call_of_its_own_is_called(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    kind = type(tokenizer)

    class Lower(kind):
        def __call__(self, text, **how):
            return super().__call__(text.lower(), **how)

    tokenizer.__class__ = Lower
    assert text_ids(tokenizer, "A B") == text_ids(AutoTokenizer.from_pretrained(chat_model_dir), "a b")


def test_added_tokens_are_special_at_once(chat_model_dir):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    assert "<new>" not in special_texts(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert "<new>" in special_texts(tokenizer)
    assert tokenizer.eos_token in special_texts(tokenizer)


@pytest.mark.parametrize("behind", ["", " ", "\n"])
@pytest.mark.parametrize("chat", [False, True])
def test_a_completion_that_ends_in_an_end_gets_no_second_one(chat, behind, chat_model_dir, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    plain = AutoTokenizer.from_pretrained(make_model(tmp_path / "names"))
    for one, ends in ((tokenizer, (tokenizer.eos_token, "<|im_end|>")), (plain, (plain.eos_token,))):
        for end in ends:
            text = f"a b{end}{behind}"
            assert tokenize_completion(one, text, chat=chat and one is tokenizer) == text_ids(one, text)
    assert tokenize_completion(tokenizer, "a<|im_start|>")[-1] == tokenizer.eos_token_id
    assert tokenize_completion(tokenizer, f"a{tokenizer.eos_token}b")[-1] == tokenizer.eos_token_id
