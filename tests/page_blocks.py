"""Follows a page of docs/: its blocks are run in order in one folder, and its outputs compared with what they print."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

from forks import run_fork, run_forks
from ranks import joined

BLOCK = re.compile(r"^(<!-- not run .*?-->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^((?:aitraining|accelerate launch|torchrun) (?:.*\\\n)*.*\n)", re.MULTILINE)
NOT_RUN = {  # commands that no test can run, with what they need; test_docs.py parses those of this package
    "sh runs/first/exports/vllm/serve.sh": "vLLM, which serves until it is stopped",
    "--to gguf --converter ~/llama.cpp": "llama.cpp's converter",
    "python -m tools.embedded_model.train": "hours; tests/embedded/test_embedded.py trains for some steps",
}
LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--main_process_port"),
    "torchrun": ("torch.distributed.run", "--master_port"),
}
STARTED = """
import json, os, sys
with open("started-" + os.environ["RANK"], "w") as file:
    json.dump([sys.argv[1:], dict(os.environ)], file)
"""
FIGURE = re.compile(r"\d[\d,.:]*(e-\d+)?")


def follow(language: str, code: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Do what a block says, and return what it printed; the package runs in forks, which have it loaded."""
    if language == "bash":
        return "".join(_run(command, folder, environment) for command in _commands(code))
    assert language == "python", language
    (folder / "block.py").write_text(code)
    return _fork(["block.py"], folder, environment)


def lines(text: str) -> list[str]:
    """Return the lines of an output without their spacing, each figure replaced."""
    return [FIGURE.sub("#", " ".join(line.split())) for line in text.splitlines()]


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return a page's blocks in order: the comment that says why one is not run or "", the language, the code.

    Python blocks that follow each other are one, since a reader runs them in one session.
    """
    found: list[tuple[str, str, str]] = []
    for not_run, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if found and found[-1][:2] == ("", "python") == (not_run, language):
            code = f"{found.pop()[2]}\n{code}"
        found.append((not_run, language, code))
    return found


def _commands(code: str) -> list[str]:
    """Split a block before and after each command of this package, which may go on over several lines."""
    return [part for part in COMMAND.split(code) if part.strip()]


def _run(command: str, folder: Path, environment: dict[str, str] | None) -> str:
    if any(part in command for part in NOT_RUN):
        return ""
    if COMMAND.match(command):
        words = shlex.split(command.replace("\\\n", " "))
        if words[0] in LAUNCHERS:
            return _launch(words, folder, environment)
        return _fork(["-m", "trl_distill.cli", *words[1:]], folder, environment)
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _launch(words: list[str], folder: Path, environment: dict[str, str] | None) -> str:
    """Have a launcher start processes that only say how they were started, and do in forks what they were to do."""
    module, port = LAUNCHERS[words[0]]
    at = words.index("-m")
    flags = [port, "0", *words[2 if words[0] == "accelerate" else 1 : at]]
    (folder / "started.py").write_text(STARTED)
    _fork(["-m", module, *flags, "-m", "started", *words[at + 2 :]], folder, {"GLOO_SOCKET_IFNAME": "lo"})
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("started-*"))]
    for path in folder.glob("started-*"):
        path.unlink()
    own = [{k: v for k, v in env.items() if os.environ.get(k) != v and "TORCHELASTIC" not in k} for _, env in ranks]
    own = [{**env, **(environment or {})} for env in own]
    ended = run_forks(["-m", words[at + 1], *ranks[0][0]], joined(own), folder / "printed", cwd=folder)
    assert not any(one.code for one in ended), "".join(one.errors for one in ended)
    return "".join(one.printed for one in ended)


def _fork(command: list[str], folder: Path, environment: dict[str, str] | None) -> str:
    ended = run_fork(command, folder, environment=environment)
    assert ended.code == 0, ended.errors
    return ended.printed
