"""Real tokenizers of several kinds, trained or built here, for tests that need two that differ."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "Grüße aus Köln, déjà vu",
    "東京 は 首都 です",
    "x = f(y)\n\treturn 42",
] * 8


def byte_level(*, prefix=False, size=330):
    """Return a GPT-2 kind of tokenizer."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>", "<|pad|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")


def pieces(*, scheme="never"):
    """Return a sentencepiece kind of Unigram tokenizer with byte pieces."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    words = [
        (token, -8.0) for token in backend.get_vocab() if token not in ("<unk>", "</s>") and not token.startswith("<0x")
    ]
    table = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{b:02X}>", -20.0) for b in range(256)), *sorted(words)]
    backend.model = models.Unigram(table, unk_id=0, byte_fallback=True)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def llama(**settings):
    """Return a Llama 2 kind of BPE: a space in front, written by a normalizer, and byte pieces."""
    letters = sorted({c for text in CORPUS for c in text.replace(" ", "▁")} | {"▁"})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    tokens = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters, *("".join(m) for m in merges)]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", **settings)
