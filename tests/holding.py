"""Another process that holds a folder, as a run does that is in progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import os, sys, time
from pathlib import Path
from trl_distill.data.folder_lock import folder_lock
folder, file, forks = sys.argv[1:]
with folder_lock(Path(folder), what="it", instead="another", file=file):
    if forks == "True":
        os.fork()
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(120)
"""


@contextmanager
def another_process(
    folder: Path, *, file: str = ".lock", forks: bool = False
) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """Yield a process that holds a folder, and its fork's id if it is to have one."""
    command = [sys.executable, "-c", HOLD, str(folder), file, str(forks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        started: set[int] = set()
        try:
            started |= {int(holder.stdout.readline()) for _ in range(1 + forks)} - {holder.pid}
            yield holder, started
        finally:
            holder.kill()
            for fork in started:
                os.kill(fork, signal.SIGKILL)
