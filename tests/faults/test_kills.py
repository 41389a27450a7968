"""Whenever `aitraining teach` is killed, the same command ends in the store that an uninterrupted one writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("kill_teach.py")


def test_a_store_killed_at_20_moments_is_the_uninterrupted_one(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "20", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["kills"] == 20
    assert counted["stores"] >= 1
