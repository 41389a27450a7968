"""bitsandbytes quantization, and keeping 4-bit weights in the layout that supports gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig


def quantization_config(kind: str) -> BitsAndBytesConfig:
    """Return the bitsandbytes configuration of "int4" (nf4, computed in bfloat16) or "int8"."""
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep a model's 4-bit weights in the layout that gradients pass through, also when it is evaluated.

    On a CPU with bfloat16 instructions, bitsandbytes (0.50) repacks a layer's weights for inference the first time it
    runs in evaluation mode, and never back: a model that trains on after an evaluation, or that is its own teacher,
    would then learn from products that have no gradient. A model without 4-bit layers is left as it is.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
