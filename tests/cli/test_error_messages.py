"""How a command ends: the sentence, the exit code, the traceback on request, and no secrets."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import trl_distill.runs.api
from trl_distill import LLMTrainingParams, train
from trl_distill.cli import main
from trl_distill.errors import DataError, DistillError, RunInterrupted, UsageError, without_secrets


@pytest.fixture
def ended(monkeypatch):
    """Return a function that runs the command with a `run` that raises."""

    def end(error, *arguments):
        def run(params, *, verbose):
            raise error

        monkeypatch.setattr(trl_distill.runs.api, "run", run)
        return CliRunner().invoke(main, ["llm", *arguments])

    return end


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("data_path 'x' is no file."), 2, "--data-path 'x' is no file."),
        (DistillError("it broke."), 1, "it broke."),
        (RunInterrupted("stopped; go on with --resume."), 130, "stopped; go on with --resume."),
        (KeyboardInterrupt(), 130, "interrupted."),
        (OSError("disk\n  full"), 1, "OSError: disk full. Run again with --debug for the traceback."),
        (AssertionError(), 1, "AssertionError. Run again with --debug for the traceback."),
    ],
)
def test_a_failure_is_one_sentence_and_an_exit_code(error, code, said, ended):
    result = ended(error)
    assert result.exit_code == code
    assert result.stderr == f"aitraining: error: {said}\n"
    assert result.stdout == ""


@pytest.mark.parametrize("error", [DataError("no data."), ZeroDivisionError("by zero")])
def test_debug_shows_the_traceback(error, ended):
    lines = ended(error, "--debug").stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in run" in line for line in lines)
    assert lines[-1].startswith("aitraining: error: ")
    assert "--debug" not in lines[-1]


def test_parameters_reach_the_run(monkeypatch):
    seen = []
    monkeypatch.setattr(trl_distill.runs.api, "run", lambda params, *, verbose: seen.extend([params, verbose]))
    result = CliRunner().invoke(main, ["llm", "--model", "gpt2", "--teacher_model", "gpt2-large", "--debug"])
    assert (result.exit_code, result.output) == (0, "")
    assert (seen[0].model, seen[0].teacher_model, seen[1]) == ("gpt2", "gpt2-large", True)


@pytest.mark.parametrize("flag", ["--token", "--hub-token", "--hub_token", "--hf-token"])
@pytest.mark.parametrize("form", [["{}", "hf_abcdefgh"], ["{}=hf_abcdefgh"], ["{}"]])
def test_a_token_flag_is_rejected_and_not_repeated(flag, form, ended):
    result = ended(AssertionError(), *[part.format(flag) for part in form])
    assert result.exit_code == 2
    assert result.output == (
        f"aitraining: error: {flag} is not accepted, so that the token is written nowhere; set the environment "
        "variable HF_TOKEN.\n"
    )


def test_secrets_are_cut_out_of_every_message(ended):
    token = "hf_AbCdEfGhIjKl"
    for arguments in (["--debug"], []):
        output = ended(OSError(f"401 for {token}"), *arguments).output
        assert token not in output
        assert "hf_***" in output
    assert token not in CliRunner().invoke(main, ["llm", "--peft", token]).output
    names = "hf_transfer and hf_deepspeed_config"
    assert without_secrets(f"sk-proj-abcdefgh, hf_oauth_eyJhbGci and {names}") == f"sk-***, hf_*** and {names}"


@pytest.mark.parametrize("setting", ["model", "teacher_model", "data_path", "config", "chat_template"])
def test_a_url_is_quoted_without_user_and_password(setting, tmp_path):
    url = "s3://user:pass-word@bucket/a.jsonl"
    flags = {"model": "embedded", "teacher_model": "embedded", "project_name": str(tmp_path / "p"), setting: url}
    command = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    result = CliRunner().invoke(main, ["llm", *command])
    assert result.exit_code == 2
    assert "bucket/a.jsonl" in result.output
    assert "pass-word" not in result.output
    if setting != "config":
        with pytest.raises(UsageError) as raised:
            train(LLMTrainingParams(**flags))
        assert "pass-word" not in str(raised.value)


def test_version_and_help():
    from importlib.metadata import version

    result = CliRunner().invoke(main, ["--version"])
    assert result.output == f"trl-distill {version('trl-distill')}\n"
    assert "llm" in CliRunner().invoke(main, ["--help"]).output


def test_an_unknown_command_is_a_usage_error():
    result = CliRunner().invoke(main, ["lm"])
    assert result.exit_code == 2
    assert "lm" in result.stderr


def test_both_entry_points_are_the_command():
    from importlib.metadata import entry_points

    ours = {entry.name: entry.load() for entry in entry_points(group="console_scripts") if "trl_distill" in entry.value}
    assert ours == {"aitraining": main, "trl-distill": main}


def test_no_arguments_at_all_show_the_help():
    ended = CliRunner().invoke(main, [])
    assert (ended.exit_code, ended.stderr.startswith("Usage: "), "Error" in ended.stderr) == (2, True, False)
    assert "Exit codes: " in ended.stderr
