"""Hostile input by hypothesis: right results, or one sentence each; the same input in each run of the tests."""

from __future__ import annotations

import json
from pathlib import Path

from forks import run_fork

SCRIPT = str(Path(__file__).parent / "fuzz.py")


INPUTS = 120


def test_hostile_input_ends_in_a_right_result_or_one_sentence(tmp_path):
    arguments = ["--inputs", str(INPUTS), "--seed", "0", "--folder", str(tmp_path / "fuzz")]
    done = run_fork([SCRIPT, *arguments], tmp_path)
    assert done.code == 0, (done.printed + done.errors)[-3000:]
    counted = json.loads(done.printed.splitlines()[-1])
    assert counted["inputs"] == INPUTS
    assert min(counted[kind] for kind in ("data", "settings", "commands", "prompts", "chat_templates", "models")) > 0
    assert min(counted["accepted"], counted["refused"]) > 20
