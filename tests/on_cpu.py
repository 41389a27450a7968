"""Runs a script, or `-m MODULE`, as FSDP or DeepSpeed under gloo on a CPU: `python on_cpu.py SCRIPT [ARGUMENTS]`.

accelerate takes several processes on a CPU for plain data-parallel ones, whatever its configuration says: it reads FSDP
and DeepSpeed for kinds of processes that have an accelerator. Here they are said to be of such a kind; nothing else is
changed, so that torch's own fully_shard or DeepSpeed's own ZeRO, with their gathers and reductions, run.
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib import import_module
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

_plain = PartialState.__init__


def _as_with_accelerators(self: Any, cpu: bool = False, **kwargs: Any) -> None:
    _plain(self, cpu=False, **kwargs)


def _gloo(self: Any, *_: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


if __name__ == "__main__":
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState.__init__ = _as_with_accelerators
    PartialState._prepare_backend = _gloo
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        # reductions in shared memory, which are compiled first for a minute; a run killed meanwhile leaves a lock
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
