"""Generation: with one explicit generation configuration, and through PEFT's learned prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from ..config.devices import forked_rng
from .adapters import base_of, is_peft_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
    from typing_extensions import TypeIs

EMPTY = "the teacher's answer is empty"


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give each module its own mode back.

    Sets only the flags: `eval()` of a model with `use_kernels` selects other kernels, which have no backward.
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
def seeded_sampling(seed: int, prompts: Sequence[Sequence[int]], device: torch.device) -> Iterator[None]:
    """Seed sampling by a seed and the prompts (token ids), and restore the program's random state."""
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
    """Return the maximum sequence length of a model; None if its configuration has none."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    return int(limit) if limit else None


@dataclass(frozen=True)
class Completion:
    """A completion that a teacher generated.

    Attributes:
        ids: Token ids, with the stop token if there was one.
        finished: Whether it ended, with a stop token (its last id) or at a stop string (then the end-of-sequence token
            is last); if not, it was cut at the length limit, and no end is learned.
        text: The completion of a teacher that returns text; `ids` is then empty.
        reasoning: The reasoning before it, if that is to be learned too; empty if not.
        unusable: Why nothing can be learned from it, and what to do; empty otherwise.
    """

    ids: tuple[int, ...]
    finished: bool
    text: str | None = None
    reasoning: str = ""
    unusable: str = ""

    @property
    def without_end(self) -> list[int]:
        """The token ids, without the token that ends a finished completion."""
        return list(self.ids[:-1] if self.finished else self.ids)


@dataclass(frozen=True)
class GenerationSettings:
    """How a teacher generates; every field is part of the key of a stored completion.

    Attributes:
        max_new_tokens: Tokens at most.
        do_sample: Sample instead of greedy decoding.
        temperature: Sampling temperature, not that of the distillation.
        top_p: Nucleus of sampling.
        seed: Sampling seed.
        batch_size: Prompts per batch; changes sampled completions, but greedy ones only by rounding.
        stop: Strings that end a completion and are not part of it, in addition to the model's own stop tokens.
        engine: The engine that runs a local model: "auto", "transformers" or "vllm", see `engines`; changes
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


def has_learned_prompt(model: torch.nn.Module) -> TypeIs[PeftModel]:
    """Whether PEFT's wrapper prepends a learned prompt: prompt, prefix and P-tuning."""
    return is_peft_model(model) and bool(model.active_peft_config.is_prompt_learning)


def generating_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Return the module to call `generate` on: PEFT's wrapper if it has a learned prompt, else the model in it."""
    return model if has_learned_prompt(model) else base_of(model)


def continuations(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    more: Callable[[int], dict[str, object]] | None = None,
) -> list[list[int]]:
    """Return the ids that a model writes after each prompt, padding included.

    Prompts are one batch, padded on the left. Behind a learned prompt only those of equal length share one: PEFT counts
    padding there as positions of the row, which would then depend on its neighbours.

    Args:
        model: What `generating_model` returned.
        prompts: Token ids, each of at least one.
        config: Generation settings.
        more: Returns other arguments of `generate` for prompts of a width.
    """
    apart = has_learned_prompt(model)
    generate = cast("Callable[..., torch.Tensor]", model.generate)
    groups: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault(len(prompt) if apart else 0, []).append(place)
    written: list[list[int]] = [[] for _ in prompts]
    with torch.no_grad(), configured(model, config), warnings.catch_warnings():
        # PEFT's: they are those it has
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        for places in groups.values():
            ids, mask = padded_left([prompts[place] for place in places], config.pad_token_id)
            width = ids.shape[1]
            inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
            out = generate(**inputs, generation_config=config, **(more(width) if more else {}))
            for place, row in zip(places, out[:, width:].tolist(), strict=True):
                written[place] = row
    return written


@contextmanager
def configured(model: PreTrainedModel | PeftModel, config: GenerationConfig) -> Iterator[None]:
    """Make a model generate with only `config`: `generate` would fill missing values from the model's own.

    It gives no router logits, whose loss transformers would compute by the mask of the whole sequence, and fail.
    """
    base = base_of(model)
    configs = [c for c in (base.config, base.config.get_text_config()) if getattr(c, "output_router_logits", False)]
    backbone = getattr(base, "model", None) if is_peft_model(model) else None
    own = base.generation_config
    base.generation_config = config
    for one in configs:
        one.output_router_logits = False
    try:
        yield
    finally:
        base.generation_config = own
        for one in configs:
            one.output_router_logits = True
        if backbone is not None:
            vars(backbone).pop("generation_config", None)  # PEFT's generate leaves it there


def padded_left(prompts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids [B, S] of prompts, padded on the left, and their attention mask."""
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
