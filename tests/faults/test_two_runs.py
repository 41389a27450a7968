"""Two runs started together: one comes to its end, the other is refused, and the teacher is asked once."""

from __future__ import annotations

import json
from pathlib import Path

from forks import run_fork

CASES = ["project", "store", "killed"]


def test_of_two_runs_in_one_folder_one_is_refused_and_a_killed_one_is_no_obstacle(tmp_path):
    script = str(Path(__file__).parent / "two_runs.py")
    done = run_fork([script, "--cases", *CASES, "--folder", str(tmp_path / "runs")], tmp_path)
    assert done.code == 0, done.errors[-2000:]
    assert json.loads(done.printed.splitlines()[-1]) == dict.fromkeys(CASES, 1)
