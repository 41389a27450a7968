"""Find a causal language model's LM head: the matrix with its adapters, the softcap and the scale."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ModelError
from ..losses.lm_head import LMHead


def lm_head_of(model: PreTrainedModel) -> LMHead:
    """Return the head of a transformers causal language model, PEFT-wrapped or not.

    A quantized head is returned dequantized, one with a LoRA adapter as the sum of both: differentiable in the
    adapter, whose dropout is left out.

    Raises:
        ModelError: No LM head, or one whose adapter is not a sum of two matrices (DoRA and other kinds).
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise ModelError(f"{type(model).__name__} has no LM head; load a causal language model.")
    config = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rows = getattr(text, "unpadded_vocab_size", None)  # Inkling's
    return LMHead(_weight(head), getattr(head, "bias", None), _softcap(text), _scale(text), rows)


def head_input(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Return the LM head's input: hidden states [N, H], after one more module for some models."""
    name = PREDICTION_HEADS.get(model.config.model_type)
    return hidden if name is None else getattr(model, name)(hidden)


PREDICTION_HEADS = {"modernbert-decoder": "lm_head"}  # its output embeddings are `decoder`


def _weight(head: nn.Module) -> torch.Tensor:
    """Return the [V, H] matrix that a head multiplies by: its own, dequantized, with its adapters."""
    if not isinstance(head, BaseTunerLayer):
        return dequantize_module_weight(head)
    weight = dequantize_module_weight(head.get_base_layer())
    if head.merged or head.disable_adapters:
        return weight
    for name in head.active_adapters:
        if not isinstance(head, LoraLayer) or head.lora_variant.get(name):
            raise ModelError(
                f"the LM head has an adapter of the kind {type(head).__name__}, which is not a sum of two matrices; "
                f"leave "
                "the head out of target_modules, or train it whole with modules_to_save."
            )
        if name in head.lora_A:
            adapter: Any = head
            weight = weight + adapter.get_delta_weight(name)
    return weight


def _softcap(config: PretrainedConfig) -> float | None:
    """Return the bound of the logits; each family has its own name for it."""
    for name in ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    return None


def _scale(config: PretrainedConfig) -> float:
    """Return the factor of the logits; each family has its own name for it, and None means none."""
    if config.model_type == "mpt":  # has a `logit_scale` that transformers does not apply
        return 1.0
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None) or getattr(config, "logits_mup_width_multiplier", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / scaling
