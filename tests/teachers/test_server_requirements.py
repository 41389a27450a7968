"""Settings that a server cannot serve: the guide's commands as typed, what is used instead, and where that is shown."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from autotrain.trainers.clm import train
from autotrain.trainers.clm.params import LLMTrainingParams
from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, ParamsError
from trl_distill import run as run_params
from trl_distill.cli import main

WORDS = ["red cat", "blue dog", "tall tree", "old house"]
COMMAND = """
aitraining llm \\
  --model MODEL \\
  --trainer sft \\
  --use-distillation \\
  --teacher-model gpt-3.5-turbo \\
  --distill-temperature 3.5 \\
  --distill-alpha 0.75 \\
  --data-path ./data \\
  --project-name efficient-model
"""


@pytest.fixture
def folder(server, tmp_path, monkeypatch):
    """A working directory with the guide's data, and OpenAI where the server is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "queries.json").write_text(json.dumps([{"text": f"Write it again. {w}"} for w in WORDS]))
    (tmp_path / "math_problems.json").write_text(json.dumps([{"problem": w} for w in WORDS]))
    return tmp_path


def typed(model, *more):
    """Run the guide's second command with a student in the place of gpt2."""
    words = shlex.split(COMMAND.replace("MODEL", str(model)).replace("\\\n", ""))[1:]
    return CliRunner().invoke(main, [*words, *more])


def losses(folder, name="loss"):
    return [line[name] for line in json.loads((folder / "metrics.json").read_text())["history"] if name in line]


def test_the_guides_second_command_learns_from_text_as_typed(folder, server, student_dir):
    result = typed(student_dir)
    assert result.exit_code == 0, result.output
    assert f"Teacher: gpt-3.5-turbo at {server.url}; it gives text only (asked for prompt_logprobs" in result.stdout
    line = "loss          cross-entropy alone: the teacher gives text, no probabilities; alpha 0.75 counts as 0\n"
    assert result.stdout.count(line) == 1
    card = (folder / "efficient-model" / "README.md").read_text()
    assert "| distill_alpha | 0 (the teacher gives text only; 0.75 was given) |" in card
    assert "| distill_temperature | 3.5 |" in card  # of no effect
    figures = json.loads((folder / "efficient-model" / "metrics.json").read_text())["metrics"]
    assert figures["preflight_train"]["used_instead"] == {"distill_alpha": 0}
    assert figures["train_loss"] == pytest.approx(figures["train_ce"])
    assert {r["request"]["model"] for r in server.requests()} == {"gpt-3.5-turbo"}


def test_the_guides_second_command_learns_from_log_probabilities_as_typed(folder, server, student_dir):
    server.give("top")
    more = ["--logging-steps", "1", "--gradient-accumulation", "1"]
    result = typed(student_dir, *more)
    assert result.exit_code == 0, result.output
    line = "temperature   1 on both sides instead of 3.5: a server's log-probabilities are at temperature 1\n"
    assert result.stdout.count(line) == 1
    card = (folder / "efficient-model" / "README.md").read_text()
    why = "a server's log-probabilities are at temperature 1"
    assert f"| distill_temperature | 1 ({why}; 3.5 was given) |" in card
    assert "| distill_alpha | 0.75 |" in card
    at_one = typed(student_dir, *more, "--distill-temperature", "1", "--project-name", "one", "--strict")
    assert at_one.exit_code == 0, at_one.output
    assert "instead of" not in at_one.stdout
    for name in ("loss", "kl", "ce"):
        assert losses(folder / "efficient-model", name) == losses(folder / "one", name)
    assert max(losses(folder / "one", "kl")) > 0


def test_the_guides_example_3_runs_as_typed(folder, server, student_dir):
    config = LLMTrainingParams(
        model=str(student_dir),
        trainer="distillation",

        teacher_model="gpt-3.5-turbo",  # Or any CoT model
        teacher_prompt_template="""Let's solve this step-by-step.
    First, I'll break down the problem.
    Then, I'll work through each part.
    Finally, I'll provide the answer.

    Problem: {input}

    Step-by-step solution:""",

        student_prompt_template="Problem: {input}\nSolution:",

        distill_temperature=2.5,
        distill_alpha=0.7,

        data_path="./math_problems.json",
        text_column="problem",
        project_name="cot-distilled",
        epochs=5,
    )  # fmt: skip
    server.give("top")
    assert train(config) is not None
    card = (folder / "cot-distilled" / "README.md").read_text()
    assert "| distill_temperature | 1 (a server's log-probabilities are at temperature 1; 2.5 was given) |" in card
    server.fail()
    config.project_name = "of-text"
    assert train(config) is not None
    card = (folder / "of-text" / "README.md").read_text()
    assert "| distill_alpha | 0 (the teacher gives text only; 0.7 was given) |" in card


@pytest.mark.parametrize("gives", [(), ("top",)])
def test_strict_refuses_what_cannot_be_served_before_anything_is_asked(gives, folder, server, student_dir):
    server.give(*gives)
    result = typed(student_dir, "--strict")
    assert result.exit_code == 2
    assert "3.5, and a server's log-probabilities are at temperature 1" in result.stderr
    assert "drop --strict" in result.stderr
    assert server.requests() == []
    assert not (folder / "efficient-model").exists()


def test_a_temperature_that_would_move_stays_where_the_log_probabilities_are(folder, server, student_dir, capsys):
    server.give("top")
    settings = {
        "model": str(student_dir), "teacher_model": "gpt-3.5-turbo", "data_path": "./data", "logging_steps": 1,
        "distill_temperature": 1, "distill_temperature_end": 4, "distill_alpha_end": 0.2, "epochs": 2,
        "gradient_accumulation": 1, "project_name": "moving",
    }  # fmt: skip
    with pytest.raises(ParamsError, match="distill_temperature is 1 to 4, and a server's"):
        run_params(LLMTrainingParams(**settings, strict=True))
    assert server.requests() == []
    run_params(LLMTrainingParams(**settings))
    assert "1 on both sides instead of 1 to 4" in capsys.readouterr().out
    lines = json.loads((folder / "moving" / "metrics.json").read_text())["history"]
    assert [line["distill_alpha"] for line in lines if "kl" in line] == pytest.approx([0.7, 0.45])
    assert not any("distill_temperature" in line for line in lines)  # it does not move


def test_an_alpha_that_begins_at_0_has_log_probabilities_asked_for(folder, server, student_dir):
    server.give("top")
    result = typed(student_dir, "--distill-alpha", "0", "--distill-alpha-end", "1", "--max-steps", "1")
    assert result.exit_code == 0, result.output
    assert "at each token that it writes" in result.stdout


def test_a_script_uses_the_nearest_settings(folder, server, student_dir, capsys):
    from datasets import Dataset

    server.give("top")
    args = DistillationSFTConfig(
        output_dir="script", use_distillation=True, teacher_model="gpt-3.5-turbo", distill_temperature=3.5,
        use_cpu=True, report_to="none",
    )  # fmt: skip
    data = Dataset.from_list([{"text": words} for words in WORDS])
    trainer = DistillationSFTTrainer(str(student_dir), args, train_dataset=data)
    assert "1 on both sides instead of 3.5" in capsys.readouterr().out
    assert (trainer.setup.schedule.start.temperature, trainer.setup.schedule.end.temperature) == (1, 1)
    assert args.distill_temperature == 3.5  # as it was given


def test_a_list_with_a_server_uses_the_servers_temperature(folder, server, student_dir, capsys):
    server.give("top")
    teachers = [{"model": "embedded", "rows": 0.5}, {"model": "gpt-3.5-turbo", "rows": 0.5}]
    result = run_params(LLMTrainingParams(
        model=str(student_dir), teacher_config=teachers, data_path="./data", distill_temperature=2, max_steps=1,
        distill_max_teacher_length=8, project_name="listed",
    ))  # fmt: skip
    assert "1 on both sides instead of 2" in capsys.readouterr().out
    assert result.trainer.setup.schedule.start.temperature == 1


def test_tokens_unknown_to_the_student_leave_the_text_only(folder, server, tiny_model_dir):
    server.give("top")
    (folder / "data" / "queries.json").write_text(json.dumps([{"text": "Write it again. red cat"}]))
    refused = typed(tiny_model_dir, "--strict", "--distill-temperature", "1")
    assert refused.exit_code == 2
    assert "none of its tokens are the student's" in refused.stderr
    result = typed(tiny_model_dir)
    assert result.exit_code == 0, result.output
    assert "0.0% of completion tokens have the teacher's log-probabilities" in result.stdout


def test_a_server_without_log_probabilities_of_data_completions_is_refused(folder, server, student_dir):
    rows = [{"text": words, "completion": words} for words in WORDS]
    (folder / "data" / "queries.json").write_text(json.dumps(rows))
    result = typed(student_dir)
    assert result.exit_code == 2
    assert "teaches nothing: it gives text only, and every row has a completion of its own" in result.stderr
    assert [r["request"]["max_tokens"] for r in server.requests() if "max_tokens" in r["request"]] == [1]
    assert typed(student_dir, "--allow-text-only-teacher").exit_code == 0
