"""A student's `generation_config.json`: transformers refuses to save some, and then saves no weights either."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from transformers import GenerationConfig

if TYPE_CHECKING:
    import torch

_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)  # how transformers lists what does not go together
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")


def make_saveable(model: torch.nn.Module, say: Callable[[str], object]) -> None:
    """Drop settings that keep transformers from saving a model's generation configuration.

    Settings that it refuses and that `generate` ignores are dropped: a temperature without
    `do_sample` for example. If it names none of them, the one without which it can be saved is dropped, or all but
    the token ids.

    Args:
        model: A model, which may have no such configuration.
        say: Called with a line about what was dropped, if anything.
    """
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    problem = None if config is None else _problem(config)
    if config is None or problem is None:
        return
    dropped = {name: getattr(config, name) for name in _NAMED.findall(problem)}
    _reset(config, dropped)
    if _problem(config) is not None:  # one that it gives no name
        others = {name: value for name, value in config.to_diff_dict().items() if name not in _KEPT and value}
        culprit = next((name for name in others if _problem(_with_default(config, name)) is None), None)
        others = others if culprit is None else {culprit: others[culprit]}
        _reset(config, others)
        dropped |= others
    listed = ", ".join(f"{name}={value!r}" for name, value in dropped.items())
    say(
        f"Generation configuration: transformers does not save {listed} with the other settings of the student "
        "(temperature without do_sample=True, for example); dropped, so that the trained model can be saved."
    )


def _reset(config: GenerationConfig, names: Iterable[str]) -> None:
    defaults = GenerationConfig()
    for name in names:
        setattr(config, name, getattr(defaults, name, None))


def _with_default(config: GenerationConfig, name: str) -> GenerationConfig:
    other = copy.deepcopy(config)
    _reset(other, [name])
    return other


def _problem(config: GenerationConfig) -> str | None:
    """Return why a configuration cannot be saved; None if it can."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return None
