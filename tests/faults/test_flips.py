"""Damaged files: a command ends in what it would have ended in without the damage, or in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_damaged_file_ends_in_the_same_result_or_in_a_sentence(tmp_path):
    script = Path(__file__).with_name("flips.py")
    command = [sys.executable, str(script), "--damages", "4", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted.pop("damages") == 8
    assert sum(counted.values()) == 8
