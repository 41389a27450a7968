"""Each example runs as it stands, in a folder of its own; the demo has its own test."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def started(name, folder, *more):
    """Run an example on the embedded model and return the lines that its trainer logged."""
    command = [sys.executable, str(EXAMPLES / name), "--output-dir", "out", "--max-steps", "4", *more]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["custom_loss.py", "online_distillation.py"])
def test_it_trains(name, tmp_path):
    printed = started(name, tmp_path, "--save-strategy", "steps", "--save-steps", "4")
    assert "Pre-flight (train)" in printed
    state = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    losses = [line["loss"] for line in state["log_history"] if "loss" in line]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))


def test_every_example_is_short_and_tested():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert path.name in tests, path.name
        assert path.name == "demo.py" or len(path.read_text().splitlines()) <= 80, path.name
