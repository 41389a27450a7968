"""What a test of vLLM needs on a CPU: its CPU build packs weights once, after which none can be loaded any more.

Here its layers multiply by the weights as they are; loading them, the scheduler and the sampling are vLLM's own.
"""

from __future__ import annotations

import os
from typing import Any

import torch

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def _as_it_is(layer: Any, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def keep_weights() -> None:
    """Have vLLM's linear layers keep their weights, so that a trainer's can take their place."""
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _as_it_is
