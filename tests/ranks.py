"""Runs a test's code in one process, or in several that accelerate joins by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROLOGUE = "import sys\nsys.path.insert(0, {tests!r})\n"
EPILOGUE = """
import json, os, sys
import torch.distributed as dist
from accelerate import PartialState
state = PartialState()
if state.is_main_process:
    print("RESULT", json.dumps([state.num_processes, result]))
state.wait_for_everyone()  # gloo aborts a process whose peer has gone
if dist.is_initialized():
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo that are left may abort an interpreter that ends by itself
"""


def run_in(ranks: int, code: str, folder: Path) -> Any:
    """Return what `code` leaves in the variable `result` of the first of `ranks` processes.

    Args:
        ranks: Processes.
        code: Python; it may import what tests import.
        folder: Where the script is put.
    """
    script = folder / f"in_{ranks}.py"
    script.write_text(PROLOGUE.format(tests=str(Path(__file__).parent)) + code + EPILOGUE)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launch, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    processes, result = json.loads(line[7:])
    assert processes == ranks
    return result
