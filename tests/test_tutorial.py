"""docs/tutorial.md is followed up to its first block that needs vLLM, and prints what the page shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from forks import run_fork

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^(<!-- not run .*?-->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FIGURE = re.compile(r"\d[\d,.:]*(e-\d+)?")


def follow(language: str, code: str, folder: Path) -> str:
    """Do what a block says, and return what it printed; the package runs in forks, which have it loaded."""
    if language == "bash" and not code.startswith("aitraining "):
        done = subprocess.run(["bash", "-ec", code], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
    if language == "python":
        (folder / "block.py").write_text(code)
        command = ["block.py"]
    else:
        command = ["-m", "trl_distill.cli", *shlex.split(code.replace("\\\n", " "))[1:]]
    ended = run_fork(command, folder)
    assert ended.code == 0, ended.errors
    return ended.printed


def lines(text: str) -> list[str]:
    """Return the lines of an output without their spacing, each figure replaced."""
    return [FIGURE.sub("#", " ".join(line.split())) for line in text.splitlines()]


def test_the_tutorial_runs_as_written(tmp_path):
    """Each line that the page shows is printed, but for figures; the verdict and what is equal are as shown."""
    printed = everything = ""
    for not_run, language, code in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if not_run:
            break  # from here on with vLLM
        if language == "text":
            assert [line for line in lines(code) if line != "..." and line not in lines(printed)] == []
            continue
        printed = follow(language, code, tmp_path)
        everything += printed
    assert "12 of 60 rows are held out" in everything
    assert "It works: the student closes" in everything
    assert "\n[Repair] battery\n" in everything
    assert "12 of 12 greedy completions (100.0%) equal the trained student's, by transformers" in everything
    assert (tmp_path / "support" / "report.html").is_file()
