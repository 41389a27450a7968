"""The matrix products of the losses: factors in one precision, sums and results in a wider one.

A GPU multiplies half precision with float32 sums and can hand them out unrounded, which torch offers from 2.8 on. A CPU
widens the factors, which loses nothing.
"""

from __future__ import annotations

import functools
import logging

import torch

Tensor = torch.Tensor
HALF = (torch.float16, torch.bfloat16)
CHUNK = 2**26  # elements of a product that is made before it is added
logger = logging.getLogger(__name__)


def multiply(left: Tensor, right: Tensor, out: Tensor, *, alpha: float = 1.0, add: bool = False) -> None:
    """Write alpha * left @ right into `out`, or add it; `left` is rounded to the precision of `right`.

    Args:
        left: [n, k].
        right: [k, m].
        out: [n, m], in the precision of `right` or a wider one; of any precision if `right` is wide. Without `add`
            its content is not read.
        alpha: Factor of the product.
        add: Whether the product is added.
    """
    left = left.to(right.dtype)
    if out.dtype == right.dtype:
        torch.addmm(out, left, right, beta=int(add), alpha=alpha, out=out)
    elif right.dtype in HALF and right.device.type == "cpu":
        multiply(left.to(out.dtype), right.to(out.dtype), out, alpha=alpha, add=add)
    elif right.dtype in HALF and out.dtype == torch.float32 and has_float32_products(right.device.type):
        _multiply_unrounded(left, right, out, alpha, add)
    else:
        product = left @ right
        if add:
            out.add_(product, alpha=alpha)
        else:
            out.copy_(product).mul_(alpha)


def kept_dtype(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype:
    """Return the precision in which a weight's gradient waits for the factor of the loss: float16 would overflow."""
    return wide if dtype == torch.float16 else dtype


@functools.cache
def has_float32_products(device: str) -> bool:
    """Whether half-precision products come with their float32 sums on a kind of device; says once if they do not."""
    there = device == "cuda" and torch.version.cuda is not None and hasattr(torch.ops.aten.mm, "dtype_out")
    if not there:
        logger.warning(
            "The logits of half-precision models are rounded to half precision here, which disturbs the divergence of "
            "models that nearly agree; an NVIDIA GPU with torch 2.8 or later keeps them in float32."
        )
    return there


def _multiply_unrounded(left: Tensor, right: Tensor, out: Tensor, alpha: float, add: bool) -> None:
    """Multiply half precision into float32; before torch 2.10 such a product can neither be scaled nor added."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10):
        torch.addmm(out, left, right, out_dtype=torch.float32, beta=int(add), alpha=alpha, out=out)
    elif not add:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
        if alpha != 1:
            out.mul_(alpha)
    else:
        for part in zip(*(t.split(max(1, CHUNK // out.shape[1])) for t in (out, left)), strict=True):
            part[0].add_(torch.mm(part[1], right, out_dtype=torch.float32), alpha=alpha)
