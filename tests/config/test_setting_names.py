"""A message names a setting as its user does: a flag of the command, a parameter of `train`, a field of TRL."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset
from forms import distilling

from trl_distill import DistillationSFTConfig, LLMTrainingParams, generate_with_teacher, train
from trl_distill.cli import main
from trl_distill.cli.llm_command import COMMAND
from trl_distill.config.sft_config import TRAINER
from trl_distill.config.training_params import LIBRARY
from trl_distill.errors import DataError, ParamsError, UsageError

ROWS = [{"question": "a b e f", "completion": " c"}, {"question": "c", "completion": " d"}]
TEMPLATES = {"teacher_prompt_template": "g {input}", "student_prompt_template": "{input}"}


def by_command(settings, tmp_path):
    """Return the sentence that the command ends with."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    flags = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    command = ["llm", "--data-path", str(path), "--project-name", str(tmp_path / "run"), *flags]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 2, done.output
    return done.stderr


def by_library(settings, tmp_path):
    """Return the sentence that `train` raises."""
    params = LLMTrainingParams(data_path=Dataset.from_list(ROWS), project_name=str(tmp_path / "run"), **settings)
    with pytest.raises(UsageError) as error:
        train(params)
    return str(error.value)


def by_trainer(settings, tmp_path):
    """Return the sentence that the trainer raises."""
    settings = {TRAINER(f"--{name.replace('_', '-')}"): value for name, value in settings.items()}
    model, teacher = settings.pop("model"), settings.pop("teacher_model")
    with pytest.raises(UsageError) as error:
        distilling(model, teacher, tmp_path, ROWS, **settings)
    return str(error.value)


CASES = {
    "a column": ({}, ("--text-column", "text_column", "dataset_text_field")),
    "a length": ({"text_column": "question", "block_size": 3}, ("--block-size", "block_size", "max_length")),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("door", "place"), [(by_command, 0), (by_library, 1), (by_trainer, 2)])
def test_the_same_error_names_flags_params_or_fields_by_caller(
    case, door, place, tiny_model_dir, tiny_teacher_dir, tmp_path
):
    settings, words = CASES[case]
    settings = {"model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), **TEMPLATES, **settings}
    said = door(settings, tmp_path)
    assert words[place] in said
    assert not [word for n, word in enumerate(words) if word not in words[place] and n != place and word in said], said


def test_errors_of_later_trainer_calls_name_trainer_fields(tiny_model_dir, tiny_teacher_dir, tmp_path):
    rows = [{"prompt": "a", "completion": " b"}]
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, rows, **TEMPLATES)
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(DataError, match=r"dataset_text_field"):
            call(Dataset.from_list([{"other": "a"}]))


def test_an_error_about_queries_names_python_arguments(tiny_teacher_dir):
    with pytest.raises(DataError, match="text_column") as error:
        generate_with_teacher(str(tiny_teacher_dir), "{input}", [{"other": "a"}])
    assert "--" not in str(error.value)


def test_validate_names_python_settings():
    with pytest.raises(ParamsError, match=r"quantization 'int4' trains an adapter; add peft=True\."):
        LLMTrainingParams(model="m", teacher_model="t", quantization="int4").validate()


@pytest.mark.parametrize(
    ("said", "command", "library", "trainer"),
    [
        ("give --completions teacher.", "give --completions teacher.", "give completions='teacher'.", None),
        ("drop --teacher-store", "drop --teacher-store", "drop teacher_store", None),
        ("add --peft.", "add --peft.", "add peft=True.", "add peft_config."),
        ("lower --lr (it is 5)", "lower --lr (it is 5)", "lower lr (it is 5)", "lower learning_rate (it is 5)"),
        ("that --distill-alpha 0.7 weighs", "that --distill-alpha 0.7 weighs", "that distill_alpha=0.7 weighs", None),
        ("set use_vllm=True, or", "set --use-vllm, or", "set use_vllm=True, or", None),
        (
            "log is 'x'; --log none",
            "--log is 'x'; --log none",
            "log is 'x'; log='none'",
            "report_to is 'x'; report_to='none'",
        ),
        # a dataset's name, a user's own text, a path and a flag of another program stay as they are
        ("train has no rows", "train has no rows", "train has no rows", None),
        ("column 'the text_column' of", *["column 'the text_column' of"] * 2, None),
        ("in /a/teacher_store/b.json or", *["in /a/teacher_store/b.json or"] * 2, None),
        ("`pip install --no-deps x`", *["`pip install --no-deps x`"] * 2, None),
        ("the field {block_size} of", *["the field {block_size} of"] * 2, None),
    ],
)
def test_messages_are_spelled_for_command_library_and_trainer(said, command, library, trainer):
    assert COMMAND(said) == command
    assert LIBRARY(said) == library
    assert TRAINER(said) == (library if trainer is None else trainer)


def test_advice_in_the_preflight_names_flags_params_or_fields_by_caller(
    tiny_model_dir, tiny_teacher_dir, tmp_path, capsys
):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "give --text-column a", "completion": " b"}))
    teacher = {"teacher_model": str(tiny_teacher_dir), "teacher_prompt_template": "{input}"}
    settings = {"model": str(tiny_model_dir), **teacher, "student_prompt_template": "a b c {input}", "max_steps": 1}
    flags = [word for name, value in settings.items() for word in ("--" + name.replace("_", "-"), str(value))]
    done = CliRunner().invoke(main, ["llm", "--data-path", str(path), "--project-name", str(tmp_path / "a"), *flags])
    assert "--student-system drop" in done.stdout
    capsys.readouterr()
    train(LLMTrainingParams(data_path=str(path), project_name=str(tmp_path / "b"), **settings))
    said = capsys.readouterr().out
    assert "student_system='drop'" in said or "student_system drop" in said
    for text in (done.stdout, said):
        assert "    | give --text-column a" in text  # a row is shown as it is


def test_a_script_with_parsed_flags_reads_trainer_fields():
    """HfArgumentParser turns the types of the fields from text into classes."""
    from trl import TrlParser

    TrlParser((DistillationSFTConfig,)).parse_args_into_dataclasses(
        ["--output_dir", "a", "--use_cpu", "--bf16", "false"]
    )
    assert TRAINER("add --cross-tokenizer to compare") == "add cross_tokenizer=True to compare"
    assert LIBRARY("add --cross-tokenizer to compare") == "add cross_tokenizer=True to compare"
