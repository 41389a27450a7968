"""Follows a page of docs/: its blocks are run in order in one folder, and its outputs compared with what they print."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from forks import run_fork

BLOCK = re.compile(r"^(<!-- not run .*?-->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d[\d,.:]*(e-\d+)?")


def follow(language: str, code: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Do what a block says, and return what it printed; the package runs in forks, which have it loaded."""
    if language == "bash":
        return "".join(_run(command, folder, environment) for command in _commands(code))
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
    return [part for part in re.split(r"^(aitraining (?:.*\\\n)*.*\n)", code, flags=re.MULTILINE) if part.strip()]


def _run(command: str, folder: Path, environment: dict[str, str] | None) -> str:
    if command.startswith("aitraining "):
        return _fork(["-m", "trl_distill.cli", *shlex.split(command.replace("\\\n", " "))[1:]], folder, environment)
    done = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _fork(command: list[str], folder: Path, environment: dict[str, str] | None) -> str:
    ended = run_fork(command, folder, environment=environment)
    assert ended.code == 0, ended.errors
    return ended.printed
