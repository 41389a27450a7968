"""The run's folder: what may be written over, and what a kill leaves."""

from __future__ import annotations

import pytest

from trl_distill.errors import ProjectError
from trl_distill.params import LLMTrainingParams
from trl_distill.project import Project, write_text


def test_a_checkpoint_whose_state_was_not_written_is_passed_over(tmp_path):
    project = Project(str(tmp_path))
    for step, complete in ((5, True), (10, True), (15, False)):
        folder = project.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "trainer_state.json").write_text("{}")
    assert project.last_checkpoint().name == "checkpoint-10"


def test_somebody_elses_model_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ProjectError, match="no run of this command"):
        Project(str(tmp_path)).check(overwrite=False, resume=False)
    Project(str(tmp_path)).check(overwrite=True, resume=False)


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ProjectError, match="is a file"):
        Project(str(tmp_path / "x")).check(overwrite=True, resume=False)


def test_an_empty_folder_or_one_with_data_is_fine(tmp_path):
    (tmp_path / "queries.json").write_text("[]")
    Project(str(tmp_path)).check(overwrite=False, resume=False)
    Project(str(tmp_path / "new")).check(overwrite=False, resume=True)


def test_overwriting_takes_the_manifest_first_and_keeps_completions(tmp_path):
    project = Project(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "teacher_completions.jsonl").write_text("{}\n")
    (project.checkpoints / "checkpoint-1").mkdir(parents=True)
    project.begin(LLMTrainingParams(model="x"), overwrite=True)
    assert not (tmp_path / "run.json").exists()
    assert not project.checkpoints.exists()
    assert (tmp_path / "teacher_completions.jsonl").exists()


def test_a_writing_that_fails_leaves_what_was_there(tmp_path):
    project = Project(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("old")

    def fail():
        with project.writing() as folder:
            (folder / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert (tmp_path / "model.safetensors").read_text() == "old"
    with project.writing() as folder:
        (folder / "model.safetensors").write_text("new")
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert not (tmp_path / ".writing").exists()


def test_a_file_is_renamed_into_place(tmp_path):
    path = write_text(tmp_path / "a.txt", "x")
    assert path.read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
