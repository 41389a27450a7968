"""What the scripts here share: their arguments, and work in a forked process, which may be killed.

Import it before torch: it says that there is no GPU and no hub, and where the modules of the tests are.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from forks import load_libraries
from tqdm import tqdm


def arguments(
    description: str | None,
    *,
    cases: Iterable[str] = (),
    counts: str = "",
    short: int = 0,
    long: int = 0,
    seeded: bool = True,
) -> argparse.Namespace:
    """Return what a script was given, its folder made, and make this process ready to fork.

    Args:
        description: The script's docstring.
        cases: What `--cases` may name; default: all of them.
        counts: The option for how often something is done, in the result as `count`; empty for none.
        short: Its default.
        long: Its default with `--long`.
        seeded: Whether there is `--seed`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if cases:
        parser.add_argument("--cases", nargs="+", choices=[*cases], default=[*cases])
    if counts:
        each = "of each case; " if cases else ""
        parser.add_argument(f"--{counts}", dest="count", type=int, help=f"{each}default: {short}, with --long {long}")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    if seeded:
        parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if counts:
        given.count = given.count or (long if given.long else short)
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    load_libraries()
    tqdm.set_lock(threading.RLock())  # a fork killed while it holds the default one stops the rest
    return given


def fork(*, longest: int) -> int:
    """Fork and return the child's id, 0 in the child, which ends with a traceback after `longest` seconds."""
    with warnings.catch_warnings():  # since Python 3.12, of the libraries' threads
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(longest, exit=True)  # whatever waits that long is stuck
    return child


def run_and_exit(work: Callable[[], object]) -> NoReturn:
    """Do the work of a forked process and end it."""
    try:
        work()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(int(end.code or 0))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(9)
    os._exit(0)


def start(work: Callable[[], object], log: Path) -> int:
    """Start the work in a forked process that writes to a log, and return its id."""
    log.write_text("")
    child = fork(longest=240)
    if child:
        return child
    written = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.stdout.reconfigure(line_buffering=True)
    run_and_exit(work)


def ended(child: int, log: Path, *, wait: bool) -> bool:
    """Whether a process has ended well; one that failed by itself ends the script."""
    found, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    if found and not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit(f"exit code {os.WEXITSTATUS(status)}:\n{log.read_text()[-3000:]}")
    return bool(found)
