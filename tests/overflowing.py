"""A model that is right in float32 and overflows in float16, on some sequences and not on others."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import make_model
from transformers import AutoModelForCausalLM, PreTrainedModel

LARGEST = 65504  # of float16


def make_overflowing(folder: Path, sequences: list[list[int]], starts: list[int]) -> tuple[Path, list[int]]:
    """Save a model whose last norm overflows float16 on about half of some sequences; return it and their places.

    Args:
        folder: Where to.
        sequences: Token ids.
        starts: For each, the first token of its completion: what comes before that but the last token is not scored.
    """
    make_model(folder, hidden=48, extra_rows=64)
    model = AutoModelForCausalLM.from_pretrained(folder)
    peaks = [_scored(model, *pair).abs().amax().item() for pair in zip(sequences, starts, strict=True)]
    ordered = sorted(peaks)
    with torch.no_grad():
        model.model.norm.weight.mul_(LARGEST / ordered[len(ordered) // 2])
        model.lm_head.weight.div_(LARGEST)  # its logits are those of any other model
    model.save_pretrained(folder)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    bad = [i for i, pair in enumerate(zip(sequences, starts, strict=True)) if not _scored(half, *pair).isfinite().all()]
    return folder, bad


@torch.no_grad()
def _scored(model: PreTrainedModel, ids: list[int], start: int) -> torch.Tensor:
    """Return the last hidden states that predict a completion."""
    return model.model(torch.tensor([ids])).last_hidden_state[0, start - 1 : -1]
