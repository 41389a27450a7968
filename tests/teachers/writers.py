"""Small random models that write with tokenizers of their own: T5, BART, and a Llama with SentencePiece's spaces."""

from __future__ import annotations

from pathlib import Path

import torch

SENTENCES = [
    "a red cat sat on the old mat near the tall tree",
    "why is the sky blue and the grass green",
    "tell me a short story about a dog and a house",
    "What is 2+2? Name a colour. Spell 'cat'.",
]


def make_trained_tokenizer(*, encodes: bool):
    """Return a tokenizer trained on a few sentences, in which a word's token carries its space, as SentencePiece's.

    Args:
        encodes: Whether it ends each text in its end-of-sequence token, as an encoder reads it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=120, special_tokens=special))
    if encodes:
        backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=special[0], eos_token=special[1], unk_token=special[2]
    )


def make_t5(folder: Path, *, seed: int = 7) -> Path:
    """Save a random T5 and its tokenizer to a folder and return it; its embedding has 8 rows of no token."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = make_trained_tokenizer(encodes=True)
    config = T5Config(
        vocab_size=len(tokenizer) + 8, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        initializer_factor=1.0, tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return save(T5ForConditionalGeneration, config, tokenizer, folder, seed)


def make_bart(folder: Path, *, seed: int = 1) -> Path:
    """Save a random BART of 24 positions to a folder and return it; its decoder's second token is fixed."""
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = make_trained_tokenizer(encodes=True)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=24, init_std=0.5,
        pad_token_id=0, bos_token_id=0, eos_token_id=1, decoder_start_token_id=1, forced_bos_token_id=9,
        forced_eos_token_id=None,
    )  # fmt: skip
    return save(BartForConditionalGeneration, config, tokenizer, folder, seed)


def make_other_llama(folder: Path, *, seed: int = 1) -> Path:
    """Save a random Llama whose tokenizer is not that of the tests' students, and return its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_trained_tokenizer(encodes=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return save(LlamaForCausalLM, config, tokenizer, folder, seed)


def save(kind, config, tokenizer, folder: Path, seed: int) -> Path:
    """Save a model with random weights of a seed, and its tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
