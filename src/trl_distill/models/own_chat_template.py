"""A model's own chat template among those that a distilled student was saved with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Templates = str | dict[str, str] | None  # a source, sources by name, or none
ORIGINAL = "original"
HEAD = "{#- trl-distill: a user's message alone is rendered as in training, all else by the model's own template -#}"


def own_template(saved: Templates) -> Templates:
    """Return the model's own chat templates among the saved ones, for training and later stages.

    If none was written by this package, they are returned unchanged.
    """
    default = saved.get("default", "") if isinstance(saved, dict) else saved
    if default is None or not default.startswith(HEAD):
        return saved
    named = dict(saved) if isinstance(saved, dict) else {}
    own = named.pop(ORIGINAL, "")
    named = {**named, "default": own} if own else {k: v for k, v in named.items() if k != "default"}
    return named if set(named) - {"default"} else named.get("default")


def own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer with the model's own chat template: itself, or a copy if it was saved with another."""
    own = own_template(tokenizer.chat_template)
    if own is tokenizer.chat_template:
        return tokenizer
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = own
    return tokenizer
