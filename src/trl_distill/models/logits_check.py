"""Compare head(hidden) with a model's own logits before training, so that no model is trained on wrong ones.

Some families do more between the backbone and the logits than an LM head does: a factor, a bound, a further module.
`lm_head` knows some of them; for any other family the logits are those of the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.tensor import DTensor

from ..errors import ModelError
from ..losses.lm_head import ModelSide
from ..losses.signals.base import whole
from .architectures import vocabulary_rows
from .completion_forward import OWN_LOGITS, OwnLogits
from .lm_head import lm_head_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Result = TypeVar("Result")
PROBE = 8  # tokens
# what a model raises that has another form than it is asked for
FORM = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
EXACT, HALF = 1e-3, 2e-2  # of the largest logit, in single and in half precision


@torch.no_grad()
def check_logits(model: PreTrainedModel, forward: Callable[..., Any]) -> str:
    """Use the logits of a model's own forward if its LM head does not reproduce them.

    All ranks call it together if weights are sharded, and come to the same result.

    Args:
        model: The model without wrappers, extended by `add_completion_forward`.
        forward: The model as it is called in training, in evaluation mode.

    Returns:
        A line that says so; empty if the head reproduces the logits.

    Raises:
        ModelError: The model's own forward gives no logits for the tokens of a sequence.
    """
    if hasattr(model, OWN_LOGITS):
        return ""  # a model that teaches may be the student, which was checked
    name = type(model).__name__.removeprefix("FSDP")  # FSDP2 makes a class of its own
    ids = ((torch.arange(PROBE) * 7 + 1) % vocabulary_rows(model.config)).to(model.device)[None]
    labels = ids.clone()
    labels[:, : PROBE // 2] = -100  # so that some positions are selected and some are not
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def found() -> torch.Tensor | None:
        hidden = value_or_none(lambda: forward(**batch, completion_labels=labels).hidden)
        if hidden is None or hasattr(model, OWN_LOGITS):
            return hidden
        with whole(ModelSide(hidden, lm_head_of(model))) as side:  # weights may be sharded
            return side.logits()

    # the head goes first: once ZeRO-3 has seen it called, it would fetch it ahead while the loss gathers it
    by_head = None if model.get_output_embeddings() is None else found()
    try:
        own = forward(**batch, use_cache=False).logits[0, -PROBE:][PROBE // 2 - 1 : -1]
    except FORM as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} gives no logits of a sequence: {reason}") from error
    sharded = any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
    at_most = HALF if _is_half(model, own) else EXACT
    if _error(by_head, own, sharded=sharded) <= at_most:
        return ""
    for selects in (True, False):
        setattr(model, OWN_LOGITS, OwnLogits(selects))
        if _error(found(), own, sharded=sharded) <= at_most:
            return (
                f"the LM head alone does not compute the logits of {name}, so they come from the model's own "
                f"forward, which is slower and needs more memory."
            )
    raise ModelError(
        f"{name} gives different logits at each call, so nothing can be compared with them; choose another model."
    )


def value_or_none(compute: Callable[[], Result]) -> Result | None:
    """Return a forward's result; None if the model has a different structure."""
    try:
        return compute()
    except FORM:
        return None


def _error(found: torch.Tensor | None, own: torch.Tensor, *, sharded: bool) -> float:
    """Return the largest difference between logits [N, V] and the model's own, over the largest of these."""
    error = torch.full((), torch.inf, device=own.device)
    if found is not None and found.shape == own.shape:
        found, own = found.to(own.device).float(), own.float()
        gap = (found - own).abs().masked_fill(found == own, 0.0)  # a token that is ruled out is so in both
        size = own[own.isfinite()].abs().amax() if own.isfinite().any() else error
        error = torch.where(gap.amax() > 0, gap.amax() / size, 0.0).nan_to_num(nan=torch.inf)
    if sharded and torch.distributed.is_initialized():
        torch.distributed.all_reduce(error, torch.distributed.ReduceOp.MAX)
    return float(error)


def _is_half(model: PreTrainedModel, logits: torch.Tensor) -> bool:
    """Whether any step to the logits is in half precision or quantized."""
    narrow = (torch.float16, torch.bfloat16)
    return (
        logits.dtype in narrow
        or torch.is_autocast_enabled(logits.device.type)
        or getattr(model, "quantization_method", None) is not None
        or any(p.dtype in narrow for p in model.parameters())
    )
