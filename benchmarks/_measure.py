"""What the benchmarks share: the machine in one line, medians of alternating runs, and the peak of a child process."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

MIB = 2**20


def machine(*packages: str) -> str:
    """Return processor, cores in use and versions."""
    import torch

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{processor}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def alternating(sides: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each run by side, the sides being run in turn and the order reversed in every other round.

    Args:
        sides: What to run, by name.
        rounds: Counted runs of each.
        warmup: Runs that are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            started = time.perf_counter()
            sides[name]()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios round by round, which a drift of the machine's speed leaves alone."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def peak_bytes(make: Callable[[], Callable[[], Any]]) -> int:
    """Return by how much memory rises at most while `make()()` runs, in bytes, in a process of its own (Linux).

    Args:
        make: Module-level function or a partial of one; what it makes is there before the measure begins.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (make,))


def _peak(make: Callable[[], Callable[[], Any]]) -> int:
    """Run in the child."""
    work = make()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    kept = work()
    after = _status("VmHWM")
    del kept
    return after - before


def _status(field: str) -> int:
    """Return a field of the process's status in bytes."""
    line = next(line for line in _lines("/proc/self/status") if line.startswith(field))
    return int(line.split()[1]) * 1024


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column to the left."""
    return "\n".join([table_row(head), "|---" + "|---:" * (len(head) - 1) + "|", *map(table_row, rows)])


def table_row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table, for one that is printed as it is measured."""
    return f"| {' | '.join(cells)} |"


def print_json(figures: Mapping[str, float]) -> None:
    """Print the figures as one last line."""
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
