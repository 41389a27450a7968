"""Prompts that begin alike: the ids of whole prompts, of fewer characters read."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trl_distill.embedded import embedded_path
from trl_distill.prompts.prefix_tokenizer import PromptTokens
from trl_distill.prompts.tokenization import tokenize_prompt

TEMPLATE = (
    "You sort messages into teams. Billing takes invoices and refunds; support takes outages, logins and errors; sales "
    "takes prices, offers and upgrades. Answer with the team's name and nothing else, in small letters.\n\nMessage: "
)
TEXTS = [TEMPLATE, "naïve 東京 — déjà vu", "I cannot log in, error 1234.", "What do ten seats cost?\n\nThanks"] * 4


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<eos>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=special)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def without_pieces() -> PreTrainedTokenizerFast:
    """Return one that merges across words, as Llama 2's may."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "embedded": AutoTokenizer.from_pretrained(embedded_path()),
    "byte level": byte_level(),
    "unigram": unigram(),
    "without pieces": without_pieces(),
}


@settings(max_examples=60, deadline=None)
@given(inputs=st.lists(st.text(max_size=30), min_size=3, max_size=6))
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_ids_are_those_of_whole_prompts(name, inputs):
    tokenizer = TOKENIZERS[name]
    tokens = PromptTokens(tokenizer)
    for text in inputs:
        for prompt in (TEMPLATE + text, text):
            assert tokens(prompt) == tokenize_prompt(tokenizer, prompt)


class Counting:
    """A tokenizer that counts the characters it reads."""

    def __init__(self, tokenizer):
        self._tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **settings):
        self.characters += len(text)
        return self._tokenizer(text, **settings)


@pytest.mark.parametrize("name", ["embedded", "byte level"])
@pytest.mark.parametrize("chat", [False, True])
def test_later_prompts_are_read_from_where_they_differ(name, chat):
    own = copy.deepcopy(TOKENIZERS[name])
    if chat:
        own.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    tokenizer = Counting(own)

    def prompt(text):
        return [{"role": "user", "content": TEMPLATE + text}] if chat else TEMPLATE + text

    tokens = PromptTokens(tokenizer)
    for text in ("one message", "another"):
        tokens(prompt(text))
    tokenizer.characters = 0
    for i in range(10):
        assert tokens(prompt(f"the message {i}")) == tokenize_prompt(own, prompt(f"the message {i}"))
    assert tokenizer.characters <= 10 * 80 < 10 * len(TEMPLATE)
