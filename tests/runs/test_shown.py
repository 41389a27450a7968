"""What the command shows of hostile data: no control character reaches the terminal, in a run and in its errors."""

from __future__ import annotations

import json
import re
import shlex

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


def test_names_that_the_user_gives_are_shown_written_out(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"rows{ATTACK}.jsonl").write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(8)))
    project, rows = f"run{ATTACK}", f"rows{ATTACK}.jsonl"
    given = ["--data-path", rows, "--project-name", project, "--holdout", "0.25"]
    for words in (
        [*arguments, *given],
        [*arguments, *given, "--resume"],
        ["evaluate", project, "--timed-queries", "0", "--max-new-tokens", "2"],
        ["export", project, "--to", "merged"],
    ):
        code, output, text = invoke(*words)
        assert code == 0, output
        assert CONTROLS.findall(text) == [], words[0]
        assert r"run\x1b]0;owned" in text


def test_the_printed_commands_take_a_name_that_begins_with_a_dash(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(8)))
    code, output, _ = invoke(*arguments, "--project-name", "-run 'a\"", "--holdout", "0.25")
    assert code == 0, output
    for what, more in (("evaluate it", ["--timed-queries", "0", "--max-new-tokens", "2"]), ("serve it", [])):
        (printed,) = re.findall(rf"{what}: +aitraining (.+)", output)
        code, done, _ = invoke(*shlex.split(printed), *more)
        assert code == 0, done
    assert shlex.split(done.splitlines()[-1].strip()) == ["sh", "./-run 'a\"/exports/vllm/serve.sh"]
    code, done, _ = invoke("export", "./-run 'a\"", "--to", "merged")
    command = shlex.split(done.splitlines()[-1].strip())
    assert json.dumps("-run 'a\"/exports/merged") in command[-1]
    compile(command[-1], "command", "exec")
