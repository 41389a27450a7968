"""Weights that are no longer numbers a model can compute with: found by one pass over them, without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ..errors import model_error

LARGEST = math.sqrt(torch.finfo(torch.float32).max)  # 1.8e19: norms square what they read, in float32
SHOWN = 2


@torch.no_grad()
def broken_weights(model: torch.nn.Module, *, trained_only: bool = False) -> list[str]:
    """Return the names of a model's parameters that hold NaN, an infinity or numbers above 1.8e19.

    Only the smallest and the largest number of each are computed, which NaN makes NaN, and they are read from a device
    at once. A bias may be -inf, which rules out a token. Of sharded weights each rank looks at its part.

    Args:
        model: Any model; quantized weights and those that are in no memory are left out.
        trained_only: Whether to look at what is trained alone.
    """
    extremes: dict[torch.device, list[tuple[str, bool, torch.Tensor]]] = {}
    for name, parameter in model.named_parameters():
        own = _part_of_rank(parameter)
        if (trained_only and not parameter.requires_grad) or _is_quantized(parameter, own):
            continue
        if own.numel() and own.device.type != "meta":
            pair = torch.stack(own.aminmax()).float()
            extremes.setdefault(own.device, []).append((name, parameter.dim() == 1, pair))
    found = []
    for measured in extremes.values():
        names, is_bias, pairs = zip(*measured, strict=True)
        for name, bias, (low, high) in zip(names, is_bias, torch.stack(pairs).tolist(), strict=True):
            if not _is_finite(low, high, bias=bias):
                found.append(name)
    return found


def broken_in_file(path: Path) -> list[str]:
    """Return the names of the weights in a file of safetensors for which `broken_weights` would name them."""
    from safetensors import safe_open

    found = []
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            weight = file.get_tensor(name)
            if weight.is_floating_point() and weight.itemsize >= 2 and weight.numel():
                low, high = torch.stack(weight.aminmax()).float().tolist()
                if not _is_finite(low, high, bias=weight.dim() == 1):
                    found.append(name)
    return found


def _is_finite(low: float, high: float, *, bias: bool) -> bool:
    """Whether a model can compute with weights from `low` to `high`; a bias may be -inf."""
    return abs(high) < LARGEST and (abs(low) < LARGEST or (bias and low == -math.inf))


def check_finite(model: torch.nn.Module, role: str, path: str = "") -> None:
    """Refuse a model that was broken before it is used.

    Args:
        model: The model.
        role: The setting that named it, for the message.
        path: Where it was read from; empty if it was in memory.

    Raises:
        ModelError, TeacherError: Its weights hold NaN, an infinity or numbers above 1.8e19.
    """
    found = broken_weights(model)
    if found:
        subject = f"{role} {path!r}" if path else role
        raise model_error(role)(
            f"{subject} has weights that are not finite numbers ({named(found)}); give another model, or an earlier "
            "checkpoint of it."
        )


def named(parameters: Sequence[str]) -> str:
    """Return "a.weight, b.weight and 5 more" for an error."""
    more = len(parameters) - SHOWN
    return ", ".join(parameters[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_quantized(parameter: torch.nn.Parameter, own: torch.Tensor) -> bool:
    """Whether its numbers are no weights: bitsandbytes can pack four bits into any dtype, torchao has its own class."""
    packed = hasattr(parameter, "quant_state") or type(own) is not torch.Tensor
    return packed or not own.is_floating_point() or own.itemsize < 2


def _part_of_rank(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return what this process has of a parameter: FSDP2 and ZeRO-3 split it."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    part = getattr(parameter, "ds_tensor", None)
    return parameter.detach() if part is None else part.detach()
