"""From what is typed to parameters: each flag, the guide's commands, and what overrides what."""

from __future__ import annotations

import re
import runpy
import shlex

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from guide import COMMANDS

from trl_distill.cli import main
from trl_distill.cli.evaluate_command import evaluate
from trl_distill.cli.llm_command import HELP, llm, params_from_command
from trl_distill.cli.queries_command import queries
from trl_distill.cli.teach_command import teach
from trl_distill.config.setting_names import flag_of
from trl_distill.config.training_params import ALIASES, FIELDS, LLMTrainingParams
from trl_distill.errors import ParamsError

# the three commands of the user's guide, with the values they must lead to
GUIDE = list(
    zip(
        COMMANDS,
        [
            {
                "model": "gpt2",
                "trainer": "distillation",
                "teacher_model": "gpt2-large",
                "teacher_prompt_template": "You are an expert. Think step-by-step.\n\nQuestion: {input}\n\nAnswer:",
                "student_prompt_template": "{input}",
                "data_path": "./queries.json",
                "text_column": "text",
                "project_name": "distilled-model",
                "distill_temperature": 3.0,
                "distill_alpha": 0.7,
            },
            {
                "model": "gpt2",
                "trainer": "sft",
                "use_distillation": True,
                "teacher_model": "gpt-3.5-turbo",
                "distill_temperature": 3.5,
                "distill_alpha": 0.75,
                "data_path": "./data",
                "project_name": "efficient-model",
            },
            {
                "model": "meta-llama/Llama-2-7b-hf",
                "trainer": "distillation",
                "teacher_model": "meta-llama/Llama-2-70b-hf",
                "teacher_prompt_template": (
                    "### System: You are a helpful, respectful assistant.\n### Human: {input}\n### Assistant:"
                ),
                "student_prompt_template": "Q: {input}\nA:",
                "peft": True,
                "lora_r": 32,
                "quantization": "int4",
                "data_path": "./instructions.json",
            },
        ],
        strict=True,
    )
)


def typed(command: str) -> list[str]:
    """Return what follows `aitraining llm` in a command of a shell."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["aitraining", "llm"]
    return words[2:]


@pytest.mark.parametrize(("command", "expected"), GUIDE, ids=["basic", "sft", "lora"])
def test_commands_of_the_guide_are_parsed(command, expected):
    params = params_from_command(typed(command))
    params.validate()
    assert params == LLMTrainingParams(**expected)


@pytest.mark.parametrize(
    "flag",
    ["--teacher-prompt-template", "--student-prompt-template", "--teacher-system", "--student-system"],
)
def test_escapes_are_replaced_only_in_typed_text(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / r"a\new.txt").write_text("{input}")
    name = flag[2:].replace("-", "_")

    def read(value):
        return getattr(params_from_command([flag, value]), name)

    assert read(r"A:\n{input}\t\\theta \d") == "A:\n{input}\t\\theta \\d"
    for kept in (r"@a\new.txt", r"a\new.txt", r'[{"role": "user", "content": "a\n{input}"}]'):
        assert read(kept) == kept
    (tmp_path / "run.yaml").write_text(rf"{name}: 'a\theta\n{{input}}'")
    assert getattr(params_from_command(["--config", "run.yaml"]), name) == r"a\theta\n{input}"
    assert getattr(LLMTrainingParams(**{name: r"a\theta\n{input}"}), name) == r"a\theta\n{input}"


def test_the_commands_in_the_help_are_valid():
    commands = re.findall(r"aitraining llm(?:[^\n]*\\\n)+[^\n]*", HELP)
    assert len(commands) == 2
    for command in commands:
        params_from_command(typed(command)).validate()


@pytest.mark.parametrize("spec", FIELDS.values(), ids=list(FIELDS))
def test_each_field_is_a_flag(spec):
    if isinstance(spec.default, bool):
        value, arguments = True, [flag_of(spec.name)]
    else:
        value = spec.metadata["choices"][-1] if "choices" in spec.metadata else None
        # HfArgumentParser, where it was used before, has turned the annotation's text into types
        value = value or next((v for kind, v in (("int", 7), ("float", 0.5)) if kind in str(spec.type)), "some text")
        arguments = [flag_of(spec.name), str(value)]
    expected = LLMTrainingParams(**{spec.name: value})
    assert params_from_command(arguments) == expected
    assert params_from_command([arguments[0].replace("-", "_").replace("__", "--", 1), *arguments[1:]]) == expected
    if len(arguments) == 2:
        assert params_from_command(["=".join(arguments)]) == expected


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_names_are_flags_too(alias, name):
    assert getattr(params_from_command([flag_of(alias), "3"]), name) == 3
    assert getattr(params_from_command([f"--{alias}", "3"]), name) == 3


def test_a_command_without_flags_has_the_defaults():
    assert params_from_command([]) == LLMTrainingParams()


def test_a_switch_has_an_opposite_and_the_last_one_counts():
    assert params_from_command(["--peft"]).peft
    assert not params_from_command(["--peft", "--no-peft"]).peft
    assert not params_from_command(["--no_peft"]).peft
    assert params_from_command(["--train"]) == LLMTrainingParams()


def test_a_value_may_look_like_a_flag_or_be_negative():
    assert params_from_command(["--max-steps", "-1"]).max_steps == -1
    assert params_from_command(["--student-prompt-template=--{input}"]).student_prompt_template == "--{input}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--distill-alpha", "1.5"], "--distill-alpha is 1.5; expected a number from 0 to 1."),
        (["--distill_alpha", "x"], "--distill_alpha is 'x'; expected a number from 0 to 1."),
        (["--learning-rate", "0"], "--learning-rate is 0.0; expected a number above 0 and at most 1e+20."),
        (["--lr=-1"], "--lr is -1.0; expected a number above 0 and at most 1e+20."),
        (["--quantization", "int3"], "--quantization is 'int3'; expected one of 'int4', 'int8'."),
        (["--lora-r", "2.5"], "--lora-r is '2.5'; expected a whole number from 1 to 65536."),
    ],
)
def test_a_rejected_value_names_the_flag_as_typed(arguments, said):
    with pytest.raises(ParamsError) as error:
        params_from_command(arguments)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher-modle", "x"], "--teacher-model"),
        (["--distil_alpha", "1"], "--distill-alpha"),
        (["--model"], "requires an argument"),
        (["--peft", "true"], "unexpected argument 'true'.*--no-peft"),
        (["--teacher-prompt-template", "You", "are"], "unexpected argument 'are'.*in quotes"),
    ],
)
def test_an_invalid_command_is_a_usage_error(arguments, said):
    with pytest.raises(click.UsageError) as error:
        params_from_command(arguments)
    assert re.search(said, error.value.format_message())
    assert error.value.exit_code == 2


def test_help_all_shows_each_flag_once_under_its_heading_with_its_default():
    text = CliRunner().invoke(llm, ["--help-all"], terminal_width=100).output
    for spec in FIELDS.values():
        flag = flag_of(spec.name)
        shown = f"--[no-]{flag[2:]}" if spec.default is False else flag
        assert len(re.findall(rf"^  {re.escape(shown)}(?= |$)", text, re.MULTILINE)) == 1, spec.name
        assert f"\n{spec.metadata['help'].group}:\n" in text
    assert text.index("\nBasic:") < text.index("\nDistillation:") < text.index("\nTraining:")
    assert "[default: 5e-05; also --learning-rate]" in " ".join(text.split())
    assert "--token" not in text


def test_help_shows_the_twenty_flags_that_matter():
    shown = CliRunner().invoke(llm, ["--help"], terminal_width=100).output
    flags = re.findall(r"^  (--[a-z\[\]-]+)", shown, re.MULTILINE)
    assert len(set(flags) - {"--help-all"}) == 20
    assert {"--model", "--teacher-model", "--data-path", "--config", "--[no-]peft", "--help-all"} <= set(flags)
    assert {"--teacher-system", "--gradient-accumulation"} <= set(flags)  # what tutorial and pre-flight say to use
    everything = CliRunner().invoke(llm, ["--help-all"], terminal_width=100).output
    assert all(flag in everything for flag in flags)
    assert len(everything) > 4 * len(shown)


@pytest.mark.parametrize("command", [teach, evaluate, queries], ids=lambda command: command.name)
def test_long_commands_have_a_short_help_too(command):
    shown, everything = (
        CliRunner().invoke(command, [flag], terminal_width=100).output for flag in ("-h", "--help-all")
    )
    flags = set(re.findall(r"^  (--[a-z\[\]-]+)", shown, re.MULTILINE))
    assert {"--output", "--teacher-prompt-template", "--text-column", "--help-all"} <= flags
    assert flags >= ({"--teacher", "--count"} if command is queries else {"--teacher-model", "--data-path"})
    assert "--teacher-max-cost" not in flags
    assert all(flag in everything for flag in {*flags, "--teacher-max-cost", "--chat-template-kwargs"})
    assert len(everything) > 2 * len(shown)


@pytest.mark.parametrize(
    ("flag", "near"),
    [("--foo", set()), ("--bar", set()), ("--lg", {"--log"}), ("--teacher-modle", {"--teacher-model"})],
)
def test_only_flags_with_a_similar_name_are_suggested(flag, near):
    with pytest.raises(click.NoSuchOption) as error:
        params_from_command([flag, "1"])
    assert set(error.value.possibilities or ()) >= near
    assert bool(error.value.possibilities) == bool(near)
    assert ("Did you mean" in error.value.format_message()) == bool(near)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--unsloth", "--unsloth is not a flag of this command; drop it: models load with transformers"),
        ("--use_peft", "--use-peft is not a flag of this command; give --peft."),
        ("--no-padding", "--no-padding is not a flag of this command; drop it"),
        ("--output_dir=x", "--output-dir is not a flag of this command; give --project-name."),
    ],
)
@pytest.mark.parametrize("command", ["llm", "tune"])
def test_a_flag_of_autotrain_or_trl_is_refused_in_one_sentence_with_what_to_do_instead(command, flag, said):
    result = CliRunner().invoke(main, [command, "--model", "m", flag])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"aitraining: error: {said}")
    assert result.stderr.count("\n") == 1


def test_a_flag_of_a_run_before_the_command_says_where_it_belongs():
    said = CliRunner().invoke(main, ["--config", "run.yaml"]).stderr
    assert "No such option '--config'. It is one of a command: aitraining llm --config ..." in said
    assert "aitraining llm" not in CliRunner().invoke(main, ["--foo"]).stderr


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trl_distill", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("trl_distill", run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("trl-distill ")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("llm --mixed-precision b", {"bf16"}),
        ("tune --quantization int", {"int4", "int8"}),
        ("llm --teacher-prompt-t", {"--teacher-prompt-template"}),
        ("llm --data-path ./q", "file"),
        ("evaluate runs/f", "file"),
        ("export runs/f", "file"),
        ("data quer", "file"),
    ],
)
def test_a_shell_completes_flags_choices_and_files(typed, completed):
    *before, last = typed.split()
    found = ShellComplete(main, {}, "aitraining", "_AITRAINING_COMPLETE").get_completions(before, last)
    if completed == "file":
        assert [(item.type, item.value) for item in found] == [("file", last)]
    else:
        assert {item.value for item in found} == completed


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_help_fits_the_terminal(columns):
    context = llm.make_context("llm", [], resilient_parsing=True, terminal_width=min(columns, 100))
    assert max(map(len, llm.get_help(context).splitlines())) <= min(columns, 100)
