"""A run's set-up: its teacher, prompts and schedule, built once and handed to the trainer."""

from __future__ import annotations

import pytest
from datasets import Dataset

from trl_distill import LLMTrainingParams, run
from trl_distill.prompts import system_message
from trl_distill.runs import prepare
from trl_distill.trainer import teacher_setup

PAIRS = Dataset.from_list([{"prompt": f"{a} b", "completion": f" {a}"} for a in "abcd"])


@pytest.fixture
def calls(monkeypatch):
    """Count what a run loads, groups and parses."""
    found = []
    load, parse = teacher_setup.load_teacher, system_message.parse_template
    monkeypatch.setattr(teacher_setup, "load_teacher", lambda *a, **k: found.append("teacher") or load(*a, **k))
    group = prepare.settings_of
    monkeypatch.setattr(prepare, "settings_of", lambda *a, **k: found.append("settings") or group(*a, **k))
    monkeypatch.setattr(
        system_message, "parse_template", lambda *a, name, **k: found.append(name) or parse(*a, name=name, **k)
    )
    return found


def test_a_run_builds_its_teacher_and_parses_its_prompts_once(calls, tiny_model_dir, tiny_teacher_dir, tmp_path):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), teacher_prompt_template="g {input}",
        data_path=PAIRS, project_name=str(tmp_path / "run"), max_steps=1, distill_temperature=2.5, distill_alpha=0.25,
        distill_alpha_end=1.0,
    )  # fmt: skip
    trainer = run(params).trainer
    assert sorted(calls) == ["settings", "student_prompt_template", "teacher", "teacher_prompt_template"]
    assert trainer.teacher is trainer.setup.teacher
    assert trainer.vocabulary == trainer.setup.vocabulary
    schedule = trainer.setup.schedule
    assert (schedule.start.alpha, schedule.end.alpha, schedule.end.temperature) == (0.25, 1.0, 2.5)
    assert trainer.distiller.setup is trainer.setup
    assert trainer.setup.settings.teacher.folder == tmp_path / "run"  # also for completions of later evaluations


def test_a_store_replaces_the_teacher_that_wrote_it(calls, tiny_model_dir, tiny_teacher_dir, tmp_path):
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), teacher_prompt_template="g {input}",
        data_path=PAIRS, project_name=str(tmp_path / "run"), max_steps=1, teacher_store=str(tmp_path / "store"),
    )  # fmt: skip
    trainer = run(params).trainer
    assert calls.count("teacher") == 1
    assert type(trainer.teacher).__name__ == "StoredTeacher"
    assert trainer.setup.plan.given is None  # nothing of the set-up holds the teacher's weights
