"""What the command shows of hostile data: no control character reaches the terminal, in a run and in its errors."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from trl_distill.cli import main

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202eevil\u2066\r\u200b"
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]")


def invoke(*arguments):
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output, re.sub("\r(?=\\w[\\w ]+:)|\x1b\\[A", "", done.output)  # tqdm's bars


@pytest.fixture
def arguments(tiny_model_dir, tiny_teacher_dir, tmp_path):
    return [
        "llm", "--model", str(tiny_model_dir), "--teacher-model", str(tiny_teacher_dir),
        "--data-path", str(tmp_path / "rows.jsonl"), "--project-name", str(tmp_path / "run"), "--max-steps", "1",
        "--teacher-prompt-template", "g f e {input}",
    ]  # fmt: skip


def test_a_run_on_hostile_rows_shows_them_written_out(arguments, tmp_path):
    rows = [{"text": f"a {n} {ATTACK}", "completion": f"b {ATTACK}"} for n in range(4)]
    rows.append({"text": "", "completion": ""})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = ["--holdout", "0.25", "--eval-samples", "1", "--max-bad-rows", "1"]
    code, output, text = invoke(*arguments, *shown)
    assert code == 0, output
    assert CONTROLS.findall(text) == []
    for part in ("first row, student", "first row, completion", "samples 1/1"):
        assert r"\x1b]0;owned\x07\x1b[2J\x9b1m\u202eevil\u2066\r\u200b" in text.partition(part)[2], part


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([{"text": "a", ATTACK: "b"}, {"text": 5, ATTACK: "b"}], "line 2"),
        ([{ATTACK: "b"}], r"\x1b]0;owned"),
        ([{"messages": [{"role": ATTACK, "content": "b"}]}], r"\x1b]0;owned"),
    ],
)
def test_an_error_that_quotes_data_shows_it_written_out(rows, found, arguments, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, output, text = invoke(*arguments)
    assert code == 2, output
    assert found in text
    assert CONTROLS.findall(text) == []


def test_an_error_that_quotes_settings_shows_them_written_out(arguments, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    (tmp_path / "run.yaml").write_text(json.dumps({"model": "m", ATTACK: 1}))
    code, output, text = invoke("llm", "--config", str(tmp_path / "run.yaml"), "--debug")
    assert code == 2
    assert r"\x1b" in text
    assert CONTROLS.findall(text) == []
    code, output, text = invoke(*arguments, f"--{ATTACK}")
    assert code == 2, output
    assert CONTROLS.findall(text) == []
