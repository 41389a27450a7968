"""4-bit weights that are trained through: kept in the layout that has gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep a model's 4-bit weights in the layout that gradients pass through, also when it is evaluated.

    On a CPU with bfloat16 instructions, bitsandbytes (0.50) repacks a layer's weights for inference the first time it
    runs in evaluation mode, and never back: a model that trains on after an evaluation, or that is its own teacher,
    would then learn from products that have no gradient.

    Args:
        model: The model to train; one without 4-bit layers is left as it is.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
