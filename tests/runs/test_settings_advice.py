"""The pre-flight's line about settings that closed more of the gap in runs like this one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from trl_distill import LLMTrainingParams, run
from trl_distill.cli import main
from trl_distill.models.embedded import embedded_path
from trl_distill.runs.settings_advice import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
SETTINGS = {
    "model": "embedded", "teacher_model": "embedded", "teacher_prompt_template": "Reverse the words.\n{input}\n",
    "student_prompt_template": "{input}\n", "epochs": 6, "batch_size": 8, "gradient_accumulation": 1, "dry_run": True,
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"red {n}", "completion": f"{n} red"}) + "\n" for n in range(60)))
    return path


@pytest.fixture
def advice(data, tmp_path, capsys):
    """Return what gives the pre-flight's advice for a dry run with some settings."""

    def of(**settings):
        run(
            LLMTrainingParams(**{"data_path": str(data), "project_name": str(tmp_path / "run"), **SETTINGS, **settings})
        )
        return [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if "  advice  " in line]

    return of


def test_a_learning_rate_that_closed_little_in_runs_like_this_is_shown_beside_the_best(advice):
    assert advice() == [
        "in runs like this one (prompt baking, 60 rows, 45 steps) lr=5e-05 with distill_temperature=3 closed 6% of the "
        "gap to the teacher, lr=0.001 with distill_temperature=1 closed 78%"
    ]


def test_another_model_as_the_teacher_is_another_job(tmp_path, advice):
    shutil.copytree(embedded_path(), tmp_path / "teacher")
    assert advice(teacher_model=str(tmp_path / "teacher")) == [
        "in runs like this one (knowledge distillation, 60 rows, 45 steps) lr=5e-05 with distill_temperature=3 closed "
        "3% of the gap to the teacher, lr=0.001 with distill_temperature=3 closed 100%"
    ]


def test_the_command_names_flags(data, tmp_path):
    flags = [
        w for name, value in SETTINGS.items() if name != "dry_run" for w in (f"--{name.replace('_', '-')}", str(value))
    ]
    given = ["llm", "--data-path", str(data), "--project-name", str(tmp_path / "run"), "--dry-run", *flags]
    printed = CliRunner().invoke(main, given).stdout
    assert "to the teacher, --lr 0.001 with --distill-temperature 1 closed 78%\n" in printed
    assert printed.count("  advice  ") == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1e-3},
        {"lr": 1e-3, "distill_temperature": 3.0, "distill_alpha": 0.5},  # the guide's values alone
        {"lr": 1e-6},  # was not measured
        {"epochs": 60},
        {"peft": True},
        {"distill_alpha": 0.3},
        {"distill_divergence": "jsd"},
        {"distill_on_policy_fraction": 1.0},
    ],
    ids=str,
)
def test_there_is_none_for_what_fits_or_was_not_measured(settings, advice):
    assert advice(**settings) == []


def test_there_is_none_for_a_model_of_another_size(tiny_model_dir, advice):
    assert advice(model=str(tiny_model_dir), teacher_model=str(tiny_model_dir)) == []


def test_the_figures_are_those_of_the_documentation():
    shown, steps = {}, 0
    for line in PAGE.read_text("utf-8").splitlines():
        named = re.search(r"embedded: (\d+) steps of 8 rows, alpha 0.7$", line)
        steps = int(named[1]) if named else steps
        cells = re.fullmatch(r"\| ([a-z ]+) \| (\d+) \| (\S+) \| (\S+) \| .* \| (\d+)% \| \d+ \|", line)
        if cells:
            shown[cells[1], int(cells[2]), steps, float(cells[3]), float(cells[4])] = int(cells[5])
    used = {
        (measured.job, measured.rows, measured.steps, lr, temperature): round(100 * share)
        for measured in TABLE
        for temperature, shares in measured.closed.items()
        for lr, share in shares.items()
    }
    assert used
    assert used.items() <= shown.items()
