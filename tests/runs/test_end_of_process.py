"""How a process ends: signals, closed pipes, terminals without UTF-8."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import trl_distill.runs.api
from trl_distill.cli import main
from trl_distill.runs.stop_signals import say_stopping

SCRIPT = Path(__file__).parents[1] / "faults" / "end_of_process.py"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@LINUX
def test_runs_end_as_they_should_by_signals_without_a_terminal_and_in_two_processes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["cases"] == 10


@LINUX
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_libraries_are_imported_ends_the_command_in_one_sentence(number, code, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"text": "red cat"}\n')
    command = "-m trl_distill.cli llm --model embedded --teacher-model embedded --teacher-prompt-template e{input}"
    process = subprocess.Popen(
        [sys.executable, *command.split(), "--data-path", str(tmp_path / "data.jsonl")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert (printed, errors) == ("", "aitraining: error: interrupted.\n")


class Dropping:
    """An object whose end gets a signal, in which the interpreter drops what the handler raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("moment", ["end of an object", "fork"])
def test_a_signal_ends_the_command_also_if_the_interpreter_drops_its_exception(moment, monkeypatch):
    def run(params, *, verbose):
        if moment == "fork":
            child = os.fork()  # whose hook gets the signal
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        else:
            Dropping()
        time.sleep(20)

    forked = [moment == "fork"]
    os.register_at_fork(after_in_parent=lambda: forked and forked.pop() and signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(trl_distill.runs.api, "run", run)
    result = CliRunner().invoke(main, ["llm"])
    assert (result.exit_code, result.stderr) == (143, "aitraining: error: interrupted.\n")


class Busy(io.StringIO):
    """A stream in the middle of a write, which Python lets no signal handler write to."""

    def write(self, text: str) -> int:
        raise RuntimeError("reentrant call")


def test_a_signal_that_comes_while_a_line_is_written_is_answered_too(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", Busy())
    say_stopping(signal.SIGTERM)
    assert "Stopping after this step" in capfd.readouterr().err
