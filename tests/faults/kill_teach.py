"""Kills `aitraining teach` at random moments and compares what is left with an uninterrupted store.

    python tests/faults/kill_teach.py --folder /tmp/faults [--long] [--kills 8]

Each attempt is a process of its own that ends by SIGKILL, forked from one that has the libraries loaded. The moment is
when a drawn number of bytes has been written, or up to a twentieth of a second later. A store that gets complete is
compared byte by byte, and the next begins. Ends with exit code 1 at the first difference.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from _forks import arguments, start  # first: sets the environment

from trl_distill.cli import main
from trl_distill.teachers.target_store import writer as teaching

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "sun", "moon", "tree", "fish"]
ROWS = 24
SHORT, LONG = 8, 60  # kills
SPARED = 0.2  # of the processes, which finish a store


def command(folder: Path, store: Path) -> list[str]:
    """Return the arguments of `aitraining`."""
    return [
        *("teach", "--model", "embedded", "--teacher-model", "embedded", "--data-path", str(folder / "data.jsonl")),
        *("--teacher-prompt-template", "Write the words in reverse order.\\n{input}\\n", "--output", str(store)),
        *("--top-k", "16", "--teacher-batch-size", "4", "--distill-max-teacher-length", "12"),
    ]


def contents(store: Path) -> dict[str, bytes]:
    """Return the files of a store; what begins with a dot is a file that was being written."""
    files = (p for p in store.rglob("*") if p.is_file())
    return {str(p.relative_to(store)): p.read_bytes() for p in files if not p.name.startswith(".")}


def finished(child: int) -> bool:
    """Wait for a process and say whether it ended well; one that failed by itself ends the script."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        sys.exit(f"the command failed with exit code {os.WEXITSTATUS(status)}")
    return True


def written(store: Path) -> int:
    """Return the bytes in a store that a process may be writing."""
    sizes = 0
    for folder, _, names in os.walk(store):
        for name in names:
            with suppress(FileNotFoundError):  # renamed meanwhile
                sizes += os.stat(os.path.join(folder, name)).st_size
    return sizes


def ended(child: int) -> bool:
    """Whether a process has ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_loop(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Return how many kills were made and how many stores were compared."""
    moments = random.Random(seed)
    whole, broken = folder / "whole", folder / "broken"
    if not finished(start(partial(main, command(folder, whole)), folder / "log")):
        sys.exit("the uninterrupted run was killed")
    expected, size = contents(whole), written(whole)
    done = {"kills": 0, "stores": 0}
    while done["kills"] < kills or broken.exists():
        spared, bytes_at_kill = moments.random() < SPARED, moments.uniform(written(broken), size)
        child = start(partial(main, command(folder, broken)), folder / "log")
        if done["kills"] < kills and not spared:
            while not ended(child) and written(broken) < bytes_at_kill:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
        if not finished(child):
            done["kills"] += 1
            continue
        found = contents(broken)
        for name in sorted({*expected, *found}):
            if expected.get(name) != found.get(name):
                sys.exit(f"{name} differs after {done['kills']} kills (seed {seed})")
        done["stores"] += 1
        shutil.rmtree(broken)
    return done


if __name__ == "__main__":
    given = arguments(__doc__, counts="kills", short=SHORT, long=LONG)
    teaching.ROWS = 4  # shards small enough for many of them
    rows = ({"text": f"{WORDS[i % 10]} {WORDS[i * 3 % 10]} {WORDS[i // 10]}"} for i in range(ROWS))
    (given.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(json.dumps(kill_loop(given.folder, given.count, given.seed)))
