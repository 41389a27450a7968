"""How a model writes: by one generation configuration alone, and through a prompt that PEFT has it learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..config.devices import forked_rng
from .adapters import base_of, is_peft_model

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig

EMPTY = "the teacher's answer is empty"


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give each module its own mode back.

    By the flags alone: `eval()` of a model with `use_kernels` looks for other kernels, which know no backward.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def drawing(seed: int, prompts: Sequence[Sequence[int]], device: torch.device) -> Iterator[None]:
    """Draw by a seed and the prompts (token ids), and give the program its random state back."""
    with forked_rng(device):
        torch.manual_seed(hash((seed, *map(tuple, prompts))) % 2**63)
        yield


def cut_at_stop(ids: Sequence[int], stops: Sequence[int]) -> Completion:
    """Return the completion up to its first stop token, that token included."""
    for k, token in enumerate(ids):
        if token in stops:
            return Completion(tuple(ids[: k + 1]), True)
    return Completion(tuple(ids), False)


def length_limit(config: PretrainedConfig) -> int | None:
    """Return how many tokens a sequence of this model may have, where its configuration says so."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(limit) if limit else None


@dataclass(frozen=True)
class Completion:
    """A completion that a teacher wrote.

    Attributes:
        ids: Token ids, the stop token included where there was one.
        finished: Whether it ended, in a stop token (which is its last id) or in front of a stop string (then that is
            the end-of-sequence token); if not it was cut at the length limit and is taught no end.
        text: What a teacher wrote that has no token ids of its own; `ids` is then empty.
        reasoning: What it thought before, if that is to be learned too; empty if not.
        unusable: Why nothing can be learned from it, with what to do; empty if something can.
    """

    ids: tuple[int, ...]
    finished: bool
    text: str | None = None
    reasoning: str = ""
    unusable: str = ""


@dataclass(frozen=True)
class GenerationSettings:
    """How a teacher writes; everything here is part of what a stored completion is found by.

    Attributes:
        max_new_tokens: Tokens at most.
        do_sample: Draw instead of taking the likeliest token.
        temperature: Of the drawing, not of the distillation.
        top_p: Nucleus of the drawing.
        seed: Of the drawing.
        batch_size: Prompts at a time; changes no greedy completion beyond rounding, and every drawn one.
        stop: Texts that end a completion and are no part of it, besides the model's own stop tokens.
        engine: What runs a local model while it writes: "auto", "transformers" or "vllm", see `engines`; changes
            completions as `batch_size` does.
    """

    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 42
    batch_size: int = 16
    stop: tuple[str, ...] = ()
    engine: str = "auto"


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
