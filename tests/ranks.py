"""Runs a test's code in one process, or in several that accelerate joins by gloo."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from forks import run_forks

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
    environments = joined([{} for _ in range(ranks)]) if ranks > 1 else [{}]
    first, *others = run_forks([str(script)], environments, folder / f"of_{ranks}", timeout=180)
    assert not any(ended.code for ended in (first, *others)), first.errors[-3000:]
    line = next(line for line in first.printed.splitlines() if line.startswith("RESULT"))
    processes, result = json.loads(line[7:])
    assert processes == ranks
    return result


def joined(environments: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return environments with what lets the processes find each other, on a port of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = len(environments)
    places = {
        "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    return [
        {**own, **{name: str(value) for name, value in {**places, "RANK": rank, "LOCAL_RANK": rank}.items()}}
        for rank, own in enumerate(environments)
    ]
