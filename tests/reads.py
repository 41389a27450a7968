"""Notes each time that Python reads a tensor's value, or has a tensor made of its own numbers, and who did so.

On a GPU each of these waits until the device has computed all that it was asked for. Tests without a GPU count them on
the CPU; `tests/gpu/test_synchronisation.py` has CUDA count them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import trl_distill

OURS = Path(trl_distill.__file__).parent
TORCH = Path(torch.__file__).parent
# reading a mask, transformers decides whether attention needs it; SFTTrainer's forward does the same
OTHERS = ("transformers/masking_utils.py",)
METHODS = {
    getattr(torch.Tensor, name)
    for name in ("tolist", "numpy", "cpu", "item", "new_tensor", "__bool__", "__int__", "__float__", "__index__")
}
OPERATORS = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "unique_dim_consecutive", "equal", "is_nonzero", "item", "bincount", "searchsorted",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}


class Reads:
    """Within this context `found` gets a line for each read outside of `losses`, which has a path for each device."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._modes = (_Methods(self), _Operators(self))

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def note(self, what: str) -> None:
        """Add a read."""
        line = innermost()
        if line is not None and OURS / "losses" not in Path(line.rpartition(":")[0]).parents:
            self.found.append(f"{line} {what}")


@contextmanager
def waits() -> Iterator[list[str]]:
    """Yield a list that gets the line of each call for which CUDA waits, but for those of `OTHERS`."""
    found: list[str] = []

    def note(*args: Any, **kwargs: Any) -> None:
        line = innermost()
        if line is not None:
            found.append(line)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # once in a process torch says that the mode is a prototype
        torch.cuda.set_sync_debug_mode("warn")
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def innermost() -> str | None:
    """Return the innermost line that is neither torch's nor of this file; None if it is one of `OTHERS`."""
    frame = sys._getframe()
    while frame.f_back is not None and (TORCH in Path(frame.f_code.co_filename).parents or _is_here(frame)):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return None if file.endswith(OTHERS) else f"{file}:{frame.f_lineno}"


class _Methods(TorchFunctionMode):
    """Sees what never becomes an operator, as `tolist` of a tensor on the CPU."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") is not None
        made = made and not isinstance(args[0], torch.Tensor) and args[0] != []  # without numbers there is no copy
        if made or func in METHODS:
            self.reads.note(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Sees what an operator does inside."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in INDEXING and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        # as many times as a tensor says, which decides how large the outcome is
        counted = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in OPERATORS or masks or counted:
            self.reads.note(name)
        return func(*args, **(kwargs or {}))


def _is_here(frame: Any) -> bool:
    return frame.f_code.co_filename in (__file__, warnings.__file__)
