"""`aitraining tune`: its flags, what it refuses, and a dry run."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from trl_distill.cli import main
from trl_distill.cli.llm_command import llm, params_from_command
from trl_distill.cli.tune_command import searched, tune
from trl_distill.config.search_space import Range

MODELS = ["--model", "embedded", "--teacher-model", "embedded"]


def parsed(*arguments):
    return searched(tune.make_context("tune", [*MODELS, *arguments]))


def command(*arguments):
    return CliRunner().invoke(main, ["tune", *MODELS, *map(str, arguments)])


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps({"text": f"red cat {i}"}) + "\n" for i in range(8)))
    return path


def test_it_has_every_flag_of_a_run():
    flags = {flag for option in llm.params for flag in (*option.opts, *option.secondary_opts)}
    mine = {flag for option in tune.params for flag in (*option.opts, *option.secondary_opts)}
    assert flags - mine == {"--stages"}  # which lists runs of its own


def test_one_value_is_shared_and_several_are_the_space():
    params, space = parsed("--distill-temperature", "1,2,3", "--lr", "1e-4", "--epochs", "1..3", "--peft")
    assert (params.lr, params.peft) == (1e-4, True)
    assert space == {"epochs": Range(1.0, 3.0), "distill_temperature": (1.0, 2.0, 3.0)}


def test_other_names_and_repeated_flags_list_values_too():
    _, space = parsed("--learning-rate", "1e-4", "--lr", "1e-3", "--teacher-system", "a, b", "--teacher-system", "c\\n")
    assert space == {"teacher_system": ("a, b", "c\n"), "lr": (1e-4, 1e-3)}


def test_a_switch_takes_both_values():
    assert parsed("--peft", "true,false")[1] == {"peft": (True, False)}
    assert parsed("--packing", "--no-packing")[1] == {"packing": (True, False)}
    params, space = parsed("--no-peft", "--overwrite")
    assert (params.peft, params.overwrite, space) == (False, True, {})


def test_flags_override_a_file_of_settings(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: 1e-3\nepochs: 2\n")
    params, space = parsed("--config", str(tmp_path / "run.yaml"), "--lr", "1e-4,1e-5")
    assert params.epochs == 2
    assert space == {"lr": (1e-4, 1e-5)}


def test_lists_in_a_file_of_settings_are_values_too(tmp_path):
    (tmp_path / "run.yaml").write_text("distill_temperature: [1, 2]\nlr: 1e-3\ntarget_modules: [q_proj, v_proj]\n")
    params, space = parsed("--config", str(tmp_path / "run.yaml"))
    assert (params.lr, params.target_modules) == (1e-3, "q_proj,v_proj")
    assert space == {"distill_temperature": (1.0, 2.0)}
    assert parsed("--config", str(tmp_path / "run.yaml"), "--distill-temperature", "3")[1] == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--distill-temperature", "1,0"], "--distill-temperature is 0.0; expected a number above 0 and at most 1000."),
        (["--seed", "1,2"], "--seed has several values, but all trials have the same, so that they differ by what is "
         "tuned alone; give one."),
        (["--lr", "1e-3"], "there is nothing to tune; give a setting several values, such as --distill-temperature "
         "1,2,3."),
        (["--lr", "1e-4..1e-3"], "--lr is the range 0.0001..0.001, which a grid cannot cover; add --trials 20, or list "
         "values."),
        (["--lr", "1e-4,1e-3"], "there are no held-out rows to judge the trials by; add --holdout 0.1, or name a split "
         "of the data with --valid-split."),
        (["--lr", "1e-4,1e-3", "--holdout", "0.3", "--metric", "nosuch"], "--metric 'nosuch' is unknown;"),
        (["--lr", "1e-4,1e-3", "--holdout", "0.3", "--reference-column", "answer"], "the held-out rows has no column"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, sentence, data, tmp_path):
    done = command("--data-path", data, "--project-name", tmp_path / "search", *arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"aitraining: error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "search").exists()


def test_a_dry_run_lists_the_trials(data, tmp_path):
    done = command(
        "--data-path", data, "--project-name", tmp_path / "search", "--holdout", "0.3", "--distill-alpha", "0.5,0.9",
        "--dry-run", "--distill-max-teacher-length", "4", "--teacher-prompt-template", "Reverse: {input}",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["2 trials:", "  --distill-alpha 0.5", "  --distill-alpha 0.9"]
    assert "Pre-flight (train)" in done.stdout
    assert [path.name for path in (tmp_path / "search").iterdir()] == ["teacher_completions.jsonl"]


def test_the_command_ends_in_a_table_and_the_best_settings(data, tmp_path):
    project = tmp_path / "search"
    done = command(
        "--data-path", data, "--project-name", project, "--holdout", "0.3", "--distill-temperature", "1,2",
        "--lr", "1e-3", "--max-steps", "2", "--gradient-accumulation", "1", "--distill-max-teacher-length", "8",
        "--teacher-prompt-template", "Put a comma between the words.\\n\\nText: {input}\\nResult:", "--keep-all",
        "--student-prompt-template", "{input}\\nResult:", "--eval-strategy", "steps", "--eval-steps", "1", "--log",
        "tensorboard",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    trials = [line for line in lines if line.startswith("Trial ")]
    assert trials == ["Trial 1 of 2: --distill-temperature 1", "Trial 2 of 2: --distill-temperature 2"]
    head = next(place for place, line in enumerate(lines) if line.split()[:2] == ["trial", "--distill-temperature"])
    rows = [line.split() for line in lines[head + 1 : head + 3]]
    assert sorted(row[0] for row in rows) == ["1", "2"]
    assert lines[head + 4].startswith("Best by ")
    assert f"trial {rows[0][0]} (--distill-temperature {rows[0][1]})" in lines[head + 4]
    assert "differ" in lines[head + 5]
    assert lines[-1] == f"  aitraining llm --config {project / 'best.yaml'}"
    assert params_from_command(["--config", str(project / "best.yaml")]).distill_temperature == float(rows[0][1])
    assert len(list(project.glob("trials/*/model.safetensors"))) == 2
    assert len(list(project.glob("trials/*/tensorboard"))) == 2
