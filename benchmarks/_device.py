"""How a GPU is measured: its name, runs that end when it has, and its own peak. The CPU of `--tiny` has neither."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from _measure import MIB, machine


def card(device: torch.device, *packages: str) -> str:
    """Return the card's name, the memory that it has, and the versions of CUDA and of packages."""
    if device.type != "cuda":
        return f"no GPU: the CPU, for a look whether the sides run; {machine(*packages)}"
    known = torch.cuda.get_device_properties(device)
    return f"{known.name}, {known.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {machine(*packages)}"


def synchronize(device: torch.device) -> None:
    """Wait for what the device still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def to_its_end(work: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Return `work` with a wait for the device behind it, which its time includes."""

    def run() -> None:
        work()
        synchronize(device)

    return run


def peak_mib(work: Callable[[], Any], device: torch.device) -> float:
    """Return by how much the memory that tensors take rises at most while `work()` runs; NaN without a GPU."""
    if device.type != "cuda":
        work()
        return float("nan")
    synchronize(device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MIB


def failure(work: Callable[[], Any], device: torch.device) -> str | None:
    """Return why `work()` cannot run on the device, None if it can; it is run."""
    try:
        to_its_end(work, device)()
    except (RuntimeError, NotImplementedError, ValueError, ImportError) as error:  # out of memory is a RuntimeError
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return None


@functools.cache
def liger_loss() -> Any:
    """Return Liger's chunked loss of distillation; None where liger-kernel is not installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError:
        return None
    return LigerFusedLinearJSDLoss
