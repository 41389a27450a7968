"""The command and `train()` show the run, and no library messages unless `--debug` or `verbose=True` is given."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import warnings

import pytest
from forks import run_fork

from trl_distill.runs.library_output import KERNEL, MESSAGES, WARNINGS, quiet

COMMAND = [sys.executable, "-m", "trl_distill.cli", "llm"]
ASIDES = (
    "Loading weights",
    "Writing model shards",
    "Tokenizing",
    "FutureWarning",
    "mtime",
    "gemm_4bit",
    "MatMul8bit",
    "Setting accel",
)


@pytest.fixture
def flags(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = tmp_path / "queries.jsonl"
    data.write_text("\n".join(json.dumps({"text": w}) for w in "abcdefghijkl"))
    return [
        "--model", str(tiny_model_dir), "--teacher-model", str(tiny_teacher_dir), "--data-path", str(data),
        "--teacher-prompt-template", "e {input}", "--project-name", str(tmp_path / "run"), "--epochs", "2",
        "--distill-max-teacher-length", "4", "--logging-steps", "1", "--gradient-checkpointing",
    ]  # fmt: skip


def test_a_run_shows_its_own_lines_and_one_bar(flags):
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shown = [text for text in done.stderr.replace("\r", "\n").splitlines() if text.strip()]
    assert shown
    assert all(text.startswith("Teacher generates completions") for text in shown), done.stderr
    assert done.stdout.startswith("Pre-flight (train)")
    assert not [aside for aside in ("{'", "Setting accelerator") if aside in done.stdout]
    assert len([text for text in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d  step ", text)]) == 2


def test_an_error_is_the_only_output(tmp_path):
    """What transformers says of a row too long, and of compiling on a CPU, is not before it."""
    data = tmp_path / "queries.jsonl"
    data.write_text(json.dumps({"text": "red " * 1100, "completion": "red"}))
    flags = ["--model", "embedded", "--teacher-model", "embedded", "--teacher-system", "x", "--torch-compile"]
    done = subprocess.run(
        [*COMMAND, *flags, "--data-path", str(data), "--project-name", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("aitraining: error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


SCRIPT = """
import sys
from trl_distill import LLMTrainingParams, train
from tqdm import tqdm
from datasets import Dataset

model, teacher, data, project, verbose = sys.argv[1:]
params = LLMTrainingParams(
    model=model, teacher_model=teacher, data_path=data, teacher_prompt_template="e {input}", project_name=project,
    epochs=2, distill_max_teacher_length=4, logging_steps=1, gradient_checkpointing=True,
)
train(params, verbose=verbose == "verbose")
list(tqdm([1], desc="my own bar"))
Dataset.from_dict({"x": [1]}).map(dict, desc="my own map")
"""


def test_train_in_a_script_is_as_quiet_as_the_command(flags, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    given = [*flags[1:6:2], flags[9], "quiet"]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *given], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    shown = [text for text in done.stderr.replace("\r", "\n").splitlines() if text.strip()]
    ours, theirs = "Teacher generates completions", ("my own bar", "my own map")
    assert all(text.startswith((ours, *theirs)) for text in shown), done.stderr
    assert all(any(text.startswith(name) for text in shown) for name in (ours, *theirs))
    assert "Setting accelerator" not in done.stdout


def test_train_shows_everything_if_it_is_verbose(flags, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_fork(["script.py", *flags[1:6:2], flags[9], "verbose"], tmp_path)
    assert done.code == 0, done.errors
    for aside in ("Loading weights", "Writing model shards", "Tokenizing"):
        assert aside in done.errors


def test_debug_shows_everything(flags, tmp_path):
    done = run_fork(["-m", "trl_distill.cli", "llm", *flags, "--debug"], tmp_path)
    assert done.code == 0, done.errors
    for aside in ("Loading weights", "Writing model shards", "Tokenizing"):
        assert aside in done.errors


def test_a_terminal_shows_the_training_bar(flags):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    with subprocess.Popen([*COMMAND, *flags], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not read:
                break
            seen += read
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    assert "Training: " in seen.decode()
    assert "step 2/2" in seen.decode()
    assert not [aside for aside in ASIDES if aside in seen.decode()]


def test_messages_are_shown_again_afterwards(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    loggers = [logging.getLogger(name) for name, _ in (KERNEL, *MESSAGES)]
    before = [list(logger.filters) for logger in loggers], list(warnings.filters)
    with quiet(own_process=True):
        assert os.environ["TQDM_DISABLE"] == "1"
        assert all(logger.filters for logger in loggers)
    assert ([list(logger.filters) for logger in loggers], list(warnings.filters)) == before
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.parametrize("four_bits", [True, False])
def test_only_the_known_messages_are_dropped(four_bits, caplog):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with quiet(four_bits=four_bits):
            for name, start in (KERNEL, *MESSAGES):
                logging.getLogger(name).warning(start + " and so on %s", 1)
                logging.getLogger(name).warning("another")
            texts = ("`gradient_checkpointing` is deprecated and will be removed", "IProgress not found. Update it")
            for (category, _), text in zip(WARNINGS, texts, strict=True):
                warnings.warn(text, category, stacklevel=1)
                warnings.warn("another", category, stacklevel=1)
    said = [record.getMessage() for record in caplog.records]
    kept = [text for text in said if text != "another"]
    assert "another" in said
    assert kept == ([KERNEL[1] + " and so on 1"] if four_bits else [])
    assert [str(w.message) for w in warned] == ["another"] * len(WARNINGS)
