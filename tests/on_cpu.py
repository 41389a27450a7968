"""Runs a script, or `-m MODULE`, as FSDP under gloo on a CPU: `python on_cpu.py SCRIPT [ARGUMENTS]`.

accelerate takes several processes on a CPU for plain data-parallel ones, whatever its configuration says: FSDP is read
for kinds of processes that have an accelerator. Here they are said to be of such a kind; nothing else is changed, so
that torch's own fully_shard, gathers and reductions run.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType

_plain = PartialState.__init__


def _as_with_accelerators(self: Any, *args: Any, **kwargs: Any) -> None:
    _plain(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = _as_with_accelerators
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
