"""Ctrl-C leaves a checkpoint, and the run goes on from it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

from forks import run_fork

COMMAND = [sys.executable, "-m", "trl_distill.cli", "llm"]


def test_ctrl_c_leaves_a_resumable_checkpoint(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data, project = tmp_path / "queries.jsonl", tmp_path / "run"
    data.write_text("\n".join(json.dumps({"text": w, "completion": "a b"}) for w in "abcdefg" * 200))
    flags = [
        "--model", str(tiny_model_dir), "--teacher-model", str(tiny_teacher_dir), "--data-path", str(data),
        "--teacher-prompt-template", "e {input}", "--project-name", str(project), "--epochs", "1",
        "--gradient-accumulation", "1", "--batch-size", "1", "--logging-steps", "1",
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen([*COMMAND, *flags], stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        deadline = time.monotonic() + 120
        while " loss " not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        log.close()
    said = (tmp_path / "log").read_text()
    assert "--resume" in said
    assert "Traceback" not in said
    checkpoints = list((project / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    stopped_at = max(int(p.name.split("-")[1]) for p in checkpoints)
    assert 0 < stopped_at < 1400
    rest = ["-m", "trl_distill.cli", "llm", *flags, "--resume", "--max-steps", str(stopped_at + 2)]
    done = run_fork(rest, tmp_path)
    assert done.code == 0, done.errors
    assert (project / "run.json").is_file()


def test_ctrl_c_while_the_teacher_generates_says_how_to_resume(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data, project = tmp_path / "queries.jsonl", tmp_path / "run"
    data.write_text("\n".join(json.dumps({"text": f"{a} {b}"}) for a in "abcdefghijkl" for b in "abcdefghijklmnop"))
    flags = [
        "--model", str(tiny_model_dir), "--teacher-model", str(tiny_teacher_dir), "--data-path", str(data),
        "--project-name", str(project), "--teacher-batch-size", "1", "--distill-max-teacher-length", "60",
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    store = project / "teacher_completions.jsonl"
    process = subprocess.Popen([*COMMAND, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        deadline = time.monotonic() + 120
        while not (store.is_file() and store.read_text().count("\n") > 2) and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert store.read_text().count("\n") < 192
    kept = rf"interrupted: \d+ of 192 completions are kept in {re.escape(str(store))}"
    last = said.splitlines()[-1]
    assert re.fullmatch(rf"aitraining: error: {kept}; run the same command again to resume\.", last)
    assert "Traceback" not in said
