"""Starts processes as forks of one that has the libraries loaded, since loading them takes longer than most tests.

A fork runs a script, or `-m MODULE`, as a fresh interpreter does that has imported the same packages. Run as a script,
this file is the process that forks: it reads a job from each line of stdin and answers with the exit codes.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, NamedTuple

CPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "1"}


class Ended(NamedTuple):
    """What a process left: its exit code, stdout and stderr."""

    code: int
    printed: str
    errors: str


def run_forks(
    command: list[str],
    environments: list[dict[str, str]],
    folder: Path,
    *,
    cwd: Path | None = None,
    timeout: float = 150,
) -> list[Ended]:
    """Run a command on the CPU in one process per environment.

    Args:
        command: A script or `-m MODULE`, and its arguments.
        environments: What each process has in its environment in addition to this one's.
        folder: Where their output is kept.
        cwd: Where they run; default: the working directory.
        timeout: Seconds after which they are killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [[str(folder / f"{kind}-{rank}") for kind in ("out", "err")] for rank in range(len(environments))]
    job = {"command": command, "environments": environments, "outputs": outputs, "timeout": timeout}
    stdin, stdout = _loaded()
    print(json.dumps({**job, "cwd": str(cwd or Path.cwd())}), file=stdin, flush=True)
    answer = stdout.readline()
    assert answer, "the process that forks has ended; run this file as a script to see why"
    codes = json.loads(answer)
    texts = [[Path(path).read_text(errors="replace") for path in pair] for pair in outputs]
    return [Ended(code, *pair) for code, pair in zip(codes, texts, strict=True)]


def run_fork(
    command: list[str], cwd: Path, *, timeout: float = 300, environment: dict[str, str] | None = None
) -> Ended:
    """Run a command in a folder: in a fork, or in a fresh process if a GPU is at hand, which forks cannot use."""
    from trl_distill.config.devices import accelerator

    if accelerator() is None:
        (ended,) = run_forks(command, [environment or {}], cwd / "printed", cwd=cwd, timeout=timeout)
        return ended
    more = {**os.environ, **(environment or {})}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=more, capture_output=True, text=True, timeout=timeout
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@cache
def _loaded() -> tuple[IO[str], IO[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **CPU}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.communicate)  # closes its stdin, and waits for its end
    return process.stdin, process.stdout


def load_libraries() -> None:
    """Import what a run imports, and leave it out of the garbage collections of forks, which copy what they look at."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    import trl_distill

    assert trl.SFTTrainer  # imported when it is first asked for
    for module in pkgutil.walk_packages(trl_distill.__path__, "trl_distill."):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # of Triton
                import_module(module.name)
    gc.collect()
    gc.freeze()


def _fork(command: list[str], environment: dict[str, str], outputs: list[str], cwd: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for descriptor, path in ((0, os.devnull), (1, outputs[0]), (2, outputs[1])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.update(environment)
        os.chdir(cwd)
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = command
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(children: list[int], timeout: float) -> list[int]:
    """Return exit codes; if one fails or time is over, the others, which may wait for it, are killed."""
    codes: dict[int, int] = {}
    end = time.monotonic() + timeout
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            end = min(end, time.monotonic() + 5)
        if time.monotonic() > end:
            for child in children:
                if child not in codes:
                    os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.02)
    return [codes[child] for child in children]


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DeepSpeed says something when it is imported

    import torch
    from accelerate.state import PartialState

    with suppress(ImportError):
        import deepspeed  # noqa: F401
    load_libraries()
    assert not PartialState._shared_state  # each fork finds out by itself which processes there are
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        pairs = zip(job["environments"], job["outputs"], strict=True)
        children = [_fork(job["command"], environment, outputs, job["cwd"]) for environment, outputs in pairs]
        print(json.dumps(_wait(children, job["timeout"])), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
