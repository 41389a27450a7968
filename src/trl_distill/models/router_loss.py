"""The load-balancing loss of a mixture of experts, from the router logits of a forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import ParamsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def balance_loss(
    model: PreTrainedModel, routed: tuple[torch.Tensor, ...] | None, attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the load imbalance, a mean over tokens: 1 per chosen expert if the load is even.

    It is the auxiliary loss of Switch Transformers (arXiv:2101.03961, equations 4 to 6), as transformers computes it
    for every family and SFTTrainer adds it.

    Args:
        model: The model without wrappers.
        routed: The router logits of its layers, each [tokens, experts]; None or empty if there are no routers.
        attention_mask: [B, S], 0 on padding; None if every token counts.

    Raises:
        ParamsError: The routers use a different method, as Doge's do.
    """
    if not routed:
        return None
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    experts: int | None = getattr(config, "num_experts", None) or getattr(model, "num_experts", None)
    if experts is None:
        return None  # a family without such a loss, as Llama 4
    if routed[0].shape[-1] != experts:
        raise ParamsError(
            f"the load-balancing loss of {type(model).__name__} is not one that distillation adds; set "
            "router_aux_loss_coef to 0."
        )
    loss = load_balancing_loss_func(routed, experts, config.num_experts_per_tok, attention_mask)  # type: ignore[arg-type]
    return torch.as_tensor(loss)
