"""Whatever is killed, and whenever: the same command ends in what an uninterrupted one leaves, byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def finished(script: str, *arguments: str) -> dict[str, int]:
    """Run a script of this folder and return what it counted."""
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_store_killed_at_eight_moments_is_the_uninterrupted_one(tmp_path):
    counted = finished("kill_teach.py", "--kills", "8", "--folder", str(tmp_path))
    assert counted["kills"] == 8
    assert counted["stores"] >= 1


def test_training_killed_at_two_random_steps_ends_in_the_uninterrupted_student(tmp_path):
    counted = finished("kill_train.py", "--kills", "2", "--folder", str(tmp_path))
    assert counted == dict.fromkeys(["command", "self", "store", "stages", "script"], 2)
