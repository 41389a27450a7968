"""A device without float64, played on the CPU: what MPS refuses is refused, and `.cpu()` leaves the device.

The training device of these tests is the CPU, so a tensor has to say on which side it is. One that `.cpu()` returned,
or that a factory made without `device=`, is on the host, as is all that is computed from it. Any other is on the
device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REFUSAL = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
FACTORIES = {getattr(torch, name) for name in (
    "arange", "as_tensor", "empty", "eye", "from_numpy", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros",
)}  # fmt: skip


class OnHost(torch.Tensor):
    """A tensor that has left the device; what is computed from it is one too."""


def _wide(values: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(values))


class _Kernels(TorchDispatchMode):
    """Refuses what computes in float64, inside of operators and in the backward too."""

    def __init__(self, outer: WithoutFloat64) -> None:
        super().__init__()
        self.outer = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func is torch.ops.aten.lift_fresh.default
        ):  # how an array of numpy's, and what a factory is given, reach torch
            return args[0].as_subclass(OnHost) if _wide(args) else args[0]
        out = func(*args, **(kwargs or {}))
        if _wide(out) and not self.outer.on_host:
            raise TypeError(f"{REFUSAL} ({func})")
        return out


class WithoutFloat64(TorchFunctionMode):
    """Within this context a float64 tensor on the device is a TypeError."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host = False
        self.left = 0  # tensors that have been brought to the host
        self._kernels = _Kernels(self)

    def __enter__(self) -> Any:
        self._kernels.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._kernels.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made_here = func in FACTORIES and kwargs.get("device") is None
        leaves = func in (torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item)
        before = self.on_host
        theirs = any(isinstance(leaf, OnHost) for leaf in tree_leaves((args, kwargs)))
        self.on_host = before or made_here or leaves or theirs
        try:
            out = func(*args, **kwargs)
        finally:
            self.on_host, on_host = before, self.on_host
        if func is torch.Tensor.cpu or (made_here and _wide(out)):
            self.left += 1
            return out.as_subclass(OnHost) if isinstance(out, torch.Tensor) else out
        if _wide(out) and not on_host:
            raise TypeError(f"{REFUSAL} ({getattr(func, '__name__', func)})")
        return out
