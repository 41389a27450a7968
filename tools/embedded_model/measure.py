"""Measures how often a model's completion is exactly the right one, by batched greedy generation."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from .tasks import KINDS, Example, make_example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def held_out_examples(kind: str, count: int, *, seed: int = 1) -> list[Example]:
    """Return `count` examples of one kind whose inputs are in no training example."""
    rng = Random(f"{seed} {kind}")
    return [make_example(rng, kind=kind, held_out=True) for _ in range(count)]


def accuracy_by_kind(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, count: int, seed: int = 1
) -> dict[str, float]:
    """Return the share of exactly right completions per kind, over `count` held-out examples of each."""
    rates = {}
    for kind in KINDS:
        examples = held_out_examples(kind, count, seed=seed)
        rates[kind] = exact_match(model, tokenizer, [e.prompt for e in examples], [e.completion for e in examples])
    return rates


def exact_match(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], wanted: Sequence[str]
) -> float:
    """Return the share of prompts that the model continues with exactly the wanted text, blanks around it aside."""
    found = complete(model, tokenizer, prompts)
    return sum(a.strip() == b.strip() for a, b in zip(found, wanted, strict=True)) / len(wanted)


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
) -> list[str]:
    """Return greedy completions, in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [""] * len(prompts)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch: Any = tokenizer([prompts[i] for i in rows], padding=True, padding_side="left", return_tensors="pt")
        ids = batch["input_ids"]
        generate: Any = model.generate
        made = generate(
            input_ids=ids, attention_mask=batch["attention_mask"], max_new_tokens=max_new_tokens, do_sample=False
        )
        texts = tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            found[i] = text
    model.train(was_training)
    return found
