"""How a model writes: by one generation configuration alone, and through a prompt that PEFT has it learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .adapters import base_of, is_peft_model

if TYPE_CHECKING:
    from transformers import GenerationConfig


def has_learned_prompt(model: Any) -> bool:
    """Whether PEFT's wrapper puts a learned prompt in front of what a model reads: prompt, prefix and P-tuning."""
    return bool(is_peft_model(model) and model.active_peft_config.is_prompt_learning)


def what_writes(model: Any) -> Any:
    """Return what generates as a model does: PEFT's wrapper if it holds a learned prompt, else the model in it."""
    return model if has_learned_prompt(model) else base_of(model)


def continuations(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    more: Callable[[int], dict[str, Any]] | None = None,
) -> list[list[int]]:
    """Return the ids that a model writes behind each prompt, padding included.

    Prompts are one batch, padded on the left. Behind a learned prompt only those of equal length share one: PEFT counts
    padding there as positions of the row, which would then depend on its neighbours.

    Args:
        model: What `what_writes` returned.
        prompts: Token ids, each of at least one.
        config: How it writes.
        more: Returns other arguments of `generate` for prompts of a width.
    """
    apart = has_learned_prompt(model)
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt) if apart else 0, []).append(place)
    written: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), configured(model, config), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Position ids are not supported", UserWarning
        )  # PEFT's: they are those it has
        for places in groups.values():
            ids, mask = padded_left([prompts[place] for place in places], config.pad_token_id)
            width = ids.shape[1]
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            out = model.generate(**inputs, generation_config=config, **(more(width) if more else {}))
            for place, row in zip(places, out[:, width:].tolist(), strict=True):
                written[place] = row
    return written


@contextmanager
def configured(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Have a model generate by `config` alone: an argument of generate() is filled up from the model's own."""
    base = base_of(model)
    backbone = getattr(base, "model", None) if is_peft_model(model) else None
    own = base.generation_config
    base.generation_config = config
    try:
        yield
    finally:
        base.generation_config = own
        if backbone is not None:
            vars(backbone).pop("generation_config", None)  # PEFT's generate leaves it there


def padded_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids [B, S] of prompts, padded on the left, and their attention mask."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
