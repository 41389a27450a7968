"""The available device and its features: float64, bfloat16, fused AdamW, random state, asynchronous copies."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def accelerator() -> torch.device | None:
    """Return this machine's accelerator; None without one, or if accelerate is to use the CPU.

    `accelerate launch --cpu` sets ACCELERATE_USE_CPU.
    """
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return None
    return torch.accelerator.current_accelerator()


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, on the CPU if its device has none (Apple's GPUs, and some of Intel's)."""
    return tensor.double() if has_float64(tensor.device) else tensor.cpu().double()


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64, found by trying."""
    try:
        torch.ones((), dtype=torch.float64, device=device).add(1.0)
    except (TypeError, RuntimeError):  # MPS cannot hold it, XPU may hold but not add it
        return False
    return True


def on_device(values: np.ndarray, device: torch.device | None) -> torch.Tensor:
    """Copy a host array to a device (None is the CPU) without synchronising."""
    tensor = torch.from_numpy(values)
    if device is None or device.type == "cpu":
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # a copy from other memory waits


def computes_in_bfloat16() -> bool:
    """Whether every CUDA device of this process computes in bfloat16 itself; a T4 or a V100 only emulates it.

    Checks all of them, since a distributed process does not have its own device yet and all ranks must agree.
    """
    if not torch.cuda.is_available():
        return False
    if torch.version.hip is not None:  # all that ROCm runs on
        return True
    return all(torch.cuda.get_device_capability(i) >= (8, 0) for i in range(torch.cuda.device_count()))


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch supports fused AdamW on a device, found by trying, since torch's list is private."""
    weight = torch.zeros(1, device=device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except (RuntimeError, NotImplementedError):
        return False
    return True


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Restore the random state of the CPU and a device on exit."""
    if device.type == "cpu":  # without a type, which torch before 2.12 does not take as None
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type):
            yield
