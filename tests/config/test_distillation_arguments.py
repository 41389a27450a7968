"""The distillation settings: defaults, types, ranges, and the flags that TRL's parser makes of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from trl_distill.config.distillation_arguments import DistillationArguments, check_arguments
from trl_distill.errors import ParamsError


def checked(**settings):
    arguments = DistillationArguments(**settings)
    check_arguments(arguments)
    return arguments


def test_defaults_are_those_of_the_guide():
    arguments = checked()
    assert arguments.use_distillation is False
    assert arguments.teacher_model is None
    assert arguments.teacher_prompt_template == arguments.student_prompt_template == "{input}"
    assert arguments.distill_temperature == 3.0
    assert arguments.distill_alpha == 0.7
    assert arguments.distill_max_teacher_length == 512


def test_defaults_pass_their_own_checks_and_each_setting_has_help():
    checked()
    for spec in fields(DistillationArguments):
        assert str(spec.metadata["help"]).endswith("."), spec.name
        assert spec.metadata["help"].group


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("distill_temperature", 2, 2.0),
        ("distill_temperature", "2.5", 2.5),
        ("distill_alpha", 0, 0.0),
        ("distill_alpha", "1", 1.0),
        ("distill_max_teacher_length", "64", 64),
        ("distill_max_teacher_length", 64.0, 64),
        ("use_distillation", "true", True),
        ("use_distillation", "False", False),
        ("teacher_do_sample", "no", False),
        ("completion_column", None, None),
        ("teacher_device_map", {"": "cpu"}, {"": "cpu"}),
        ("teacher_max_tokens", 10**15, 10**15),
        ("teacher_prompt_template", Path("prompt.txt"), "@prompt.txt"),
        ("teacher_model", Path("models") / "t", "models/t"),
        ("teacher_prompt_template", [{"role": "user", "content": "{input}"}], [{"role": "user", "content": "{input}"}]),
    ],
)
def test_values_are_converted_to_their_field_type(name, given, expected):
    value = getattr(checked(**{name: given}), name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("distill_temperature", 0, "a number above 0"),
        ("distill_temperature", -1, "a number above 0"),
        ("distill_temperature", float("nan"), "a number above 0"),
        ("distill_temperature", "hot", "a number above 0"),
        ("distill_temperature", True, "a number above 0"),
        ("distill_temperature", None, "a number above 0"),
        ("distill_alpha", 1.01, "a number from 0 to 1"),
        ("distill_alpha", -0.1, "a number from 0 to 1"),
        ("distill_alpha", float("nan"), "a number from 0 to 1"),
        ("distill_alpha", [0.5], "a number from 0 to 1"),
        ("distill_jsd_beta", 0, "a number above 0 and at most 0.999999"),
        ("distill_max_teacher_length", 0, "a whole number of at least 1"),
        ("distill_max_teacher_length", 2.5, "a whole number of at least 1"),
        ("distill_max_teacher_length", "many", "a whole number of at least 1"),
        ("distill_max_teacher_length", float("inf"), "a whole number of at least 1"),
        ("distill_max_teacher_length", float("nan"), "a whole number of at least 1"),
        ("max_bad_rows", -1, "a whole number of at least 0"),
        ("distill_temperature", float("inf"), "a finite number above 0"),
        ("distill_temperature", float("-inf"), "a finite number above 0"),
        ("completion_column", 5, "expected text"),
        ("teacher_revision", ["main"], "expected text"),
        ("teacher_top_p", 1.5, "a number above 0 and at most 1"),
        ("use_distillation", "maybe", "true or false"),
        ("use_distillation", None, "true or false"),
        ("distill_divergence", "kl", "'forward_kl', 'reverse_kl', 'jsd'"),
        ("completions", "web", "'auto', 'data', 'teacher'"),
        ("prompt_overflow", "right", "'error', 'left'"),
        ("teacher_quantization", "int2", "'int4', 'int8'"),
        ("teacher_dtype", "int8", "'auto', 'float32', 'bfloat16', 'float16'"),
        ("distill_loss_impl", "fast", "'fused', 'plain'"),
    ],
)
def test_a_value_outside_what_is_accepted_names_setting_value_and_range(name, value, accepted):
    with pytest.raises(ParamsError) as caught:
        checked(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert accepted in message
    assert value is None or repr(value) in message


def test_a_subclass_with_its_own_fields_is_checked_as_well():
    @dataclass
    class Mine(DistillationArguments):
        mine: int = 3

    arguments = Mine(distill_alpha=2.0)
    with pytest.raises(ParamsError, match="distill_alpha"):
        check_arguments(arguments)


def test_trl_parser_makes_flags_of_the_settings():
    from transformers import HfArgumentParser

    words = ["--use_distillation", "--teacher-model", "t", "--distill_temperature", "2", "--completion_column", "c"]
    (arguments,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(words)
    check_arguments(arguments)
    assert arguments == DistillationArguments(True, "t", distill_temperature=2.0, completion_column="c")


def test_importing_the_settings_loads_the_standard_library_alone():
    code = (
        "import sys; before = set(sys.modules); "
        "import trl_distill.config.distillation_arguments, trl_distill.config.training_params; "
        "import trl_distill.prompts.template, trl_distill.errors; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'trl_distill'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
