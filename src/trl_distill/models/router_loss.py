"""The load-balancing loss of a mixture of experts, from what its routers said in a forward."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ParamsError


def balance_loss(model: Any, routed: Any, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return how unevenly tokens went to the experts, a mean over them: 1 per chosen expert where they went evenly.

    It is the auxiliary loss of Switch Transformers (arXiv:2101.03961, equations 4 to 6), as transformers has it for
    every family and SFTTrainer adds it.

    Args:
        model: The model without wrappers.
        routed: The router logits of its layers, each [tokens, experts]; None or empty where there are no routers.
        attention_mask: [B, S], 0 on padding; None where every token counts.

    Raises:
        ParamsError: The routers choose in a way of their own, as Doge's do.
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
    loss: Any = load_balancing_loss_func(routed, experts, config.num_experts_per_tok, attention_mask)
    return torch.as_tensor(loss)
