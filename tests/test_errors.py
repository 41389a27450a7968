"""The error tree: what each member is, how it ends the command, and the nearest name."""

from __future__ import annotations

import pytest

from trl_distill import errors


@pytest.mark.parametrize(
    ("name", "code", "standard"),
    [
        ("DistillError", 1, Exception),
        ("UsageError", 2, ValueError),
        ("ParamsError", 2, TypeError),
        ("TemplateError", 2, ValueError),
        ("DataError", 2, ValueError),
        ("ModelError", 2, ValueError),
        ("TeacherError", 2, ValueError),
        ("ProjectError", 2, FileExistsError),
        ("RunInterrupted", 130, Exception),
    ],
)
def test_each_error_is_also_a_standard_one_and_has_its_exit_code(name, code, standard):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.DistillError)
    assert issubclass(kind, standard)
    assert kind.exit_code == code
    assert str(kind("one sentence.")) == "one sentence."


def test_all_errors_are_public():
    made = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert made == {name for name in errors.__all__ if name != "nearest"}


def test_a_run_that_was_interrupted_is_no_usage_error():
    assert not issubclass(errors.RunInterrupted, errors.UsageError)


def test_nearest_suggests_similar_names():
    assert errors.nearest("teacher_mdel", ["teacher_model", "model"]) == " Did you mean 'teacher_model'?"
    assert errors.nearest("xyz", ["teacher_model"]) == ""
    assert errors.nearest("col", ["cola", "colb"]) in (
        " Did you mean 'cola' or 'colb'?",
        " Did you mean 'colb' or 'cola'?",
    )
    assert errors.nearest("a", []) == ""


def test_a_message_shows_the_control_characters_that_it_quotes():
    for kind in (errors.DataError, errors.ProjectError, errors.RunInterrupted):
        assert str(kind("line 3: \x1b[2Jgone\u202e")) == r"line 3: \x1b[2Jgone\u202e"


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (1234, "1,234 rows")])
def test_one_row_is_counted_as_one(number, said):
    assert errors.counted(number, "row") == said
