"""The run's folder: what may be written over, and what a kill leaves."""

from __future__ import annotations

import json

import pytest
from accelerate import PartialState

from trl_distill import evaluate
from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.data.atomic_file import write_text
from trl_distill.errors import ProjectError
from trl_distill.runs.project_folder import Project
from trl_distill.trainer.checkpoints import seal


def params(folder, **more):
    return LLMTrainingParams(model="m", teacher_model="t", data_path="d.json", project_name=str(folder), **more)


def check(folder, **more):
    project, given = Project(str(folder)), params(folder, **more)
    project.check_place(given)
    project.check(given)


@pytest.fixture
def alone():
    return PartialState(cpu=True)


def save(project, alone, *names):
    """Write a result of these files."""
    with project.writing(alone) as folder:
        for name in names:
            (folder / name).write_text("new")


def checkpoint(project, step):
    folder = project.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")


def test_a_checkpoint_without_its_state_is_skipped(tmp_path):
    project = Project(str(tmp_path))
    checkpoint(project, 5)
    checkpoint(project, 10)
    (project.checkpoints / "checkpoint-15").mkdir()
    assert project.last_checkpoint().name == "checkpoint-10"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_whose_checkpoints_are_all_damaged_is_left_alone(resume, tmp_path):
    project = Project(str(tmp_path))
    checkpoint(project, 5)
    (project.checkpoints / "checkpoint-5" / "optimizer.pt").write_bytes(b"state")
    seal(project.checkpoints / "checkpoint-5")
    (project.checkpoints / "checkpoint-5" / "optimizer.pt").write_bytes(b"stat")
    said = "without an intact checkpoint .checkpoint-5: optimizer.pt is damaged .its checksum differs..; restore one"
    with pytest.raises(ProjectError, match=said):
        check(tmp_path, resume=resume)
    check(tmp_path, overwrite=True)
    check(tmp_path / "elsewhere", resume=resume)


@pytest.mark.parametrize(
    "name", ["config.json", "adapter_config.json", "README.md", "metrics.json", "model.safetensors"]
)
@pytest.mark.parametrize("resume", [False, True])
def test_foreign_files_are_not_overwritten(name, resume, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ProjectError, match=f"holds '{name}', which is not from a run of this command"):
        check(tmp_path, resume=resume)
    check(tmp_path, overwrite=True)


@pytest.mark.parametrize("setting", ["model", "teacher_model", "data_path"])
def test_a_folder_that_the_run_reads_is_not_written_to(setting, tmp_path):
    given = params(tmp_path / "x" / "..", overwrite=True)
    setattr(given, setting, str(tmp_path))
    with pytest.raises(ProjectError, match=f"is also the folder of {setting}"):
        Project(given.project_name).check_place(given)


def test_a_path_that_cannot_be_a_folder_is_an_error(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ProjectError, match="is a file"):
        check(tmp_path / "x", overwrite=True)
    with pytest.raises(ProjectError, match="cannot be created"):
        check(tmp_path / "x" / "y")


def test_an_empty_folder_or_one_with_data_is_fine(tmp_path):
    (tmp_path / "queries.json").write_text("[]")
    check(tmp_path)
    check(tmp_path / "new", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.json"]


def test_a_run_that_was_killed_early_may_be_started_again(tmp_path):
    Project(str(tmp_path)).begin(params(tmp_path))
    begun = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    check(tmp_path)
    check(tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == begun


def test_a_run_does_not_resume_with_other_settings(tmp_path):
    project = Project(str(tmp_path))
    project.begin(params(tmp_path))
    checkpoint(project, 1)
    check(tmp_path, resume=True)
    check(tmp_path, resume=True, epochs=9, logging_steps=1, auto_find_batch_size=True)
    for changed, said in (("distill_temperature", "--distill-temperature 3.0"), ("lr", "--lr 5e-05")):
        with pytest.raises(ProjectError, match=rf"with {said}, and this one has 1\.0"):
            check(tmp_path, resume=True, **{changed: 1.0})


def test_overwriting_deletes_the_manifest_first_and_keeps_completions(tmp_path):
    project = Project(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "teacher_completions.jsonl").write_text("{}\n")
    checkpoint(project, 1)
    project.begin(params(tmp_path, overwrite=True))
    assert not (tmp_path / "run.json").exists()
    assert not project.checkpoints.exists()
    assert (tmp_path / "teacher_completions.jsonl").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_a_new_result_replaces_the_old_one_entirely(killed, tmp_path, alone):
    first = Project(str(tmp_path))
    first.begin(params(tmp_path))
    save(first, alone, "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    first.finish()
    (tmp_path / "my_notes.txt").write_text("mine")
    if killed:  # an overwriting run that got no further than this
        Project(str(tmp_path)).begin(params(tmp_path, overwrite=True))
    second = Project(str(tmp_path))
    second.begin(params(tmp_path, overwrite=True))
    assert (tmp_path / "adapter_model.safetensors").exists()  # until the new one is there
    save(second, alone, "model.safetensors", "config.json", "tokenizer.json")
    second.finish()
    found = {p.name for p in tmp_path.iterdir()}
    assert found == {"model.safetensors", "config.json", "tokenizer.json", "my_notes.txt", "config.yaml", "run.json"}
    assert "my_notes.txt" not in json.loads((tmp_path / "run.json").read_text())["files"]


def test_a_failed_write_keeps_the_old_files(tmp_path, alone):
    project = Project(str(tmp_path))
    (tmp_path / "model.safetensors").write_text("old")

    def fail():
        with project.writing(alone) as folder:
            (folder / "model.safetensors").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert (tmp_path / "model.safetensors").read_text() == "old"
    save(project, alone, "model.safetensors")
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert not (tmp_path / ".writing").exists()


def test_all_ranks_write_into_one_folder(tmp_path):
    """The main one makes it before the others go on, and moves it when they are done."""
    steps = []

    class Rank:
        def __init__(self, main):
            self.is_main_process = main

        def wait_for_everyone(self):
            steps.append("wait")

    with Project(str(tmp_path)).writing(Rank(True)) as folder:
        with Project(str(tmp_path)).writing(Rank(False)) as other:
            (other / "part-2").write_text("")
        (folder / "part-1").write_text("")
    assert {p.name for p in tmp_path.iterdir()} == {"part-1", "part-2"}
    assert len(steps) == 6


def test_a_file_is_renamed_into_place(tmp_path):
    path = write_text(tmp_path / "a.txt", "x")
    assert path.read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


BROKEN = [b"", b"{", b"[1]", b"7", b"\xff\xfe\x00", b'{"files": 7, "replaces": "model.safetensors"}']


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", [".unfinished", "run.json", "config.yaml"])
def test_a_broken_file_of_ours_is_no_obstacle_to_overwriting(name, content, tmp_path, alone):
    first = Project(str(tmp_path))
    first.begin(params(tmp_path))
    save(first, alone, "adapter_model.safetensors")
    first.finish()
    (tmp_path / name).write_bytes(content)
    check(tmp_path, overwrite=True)
    check(tmp_path, overwrite=True, resume=True)
    second = Project(str(tmp_path))
    second.begin(params(tmp_path, overwrite=True))
    save(second, alone, "model.safetensors")
    second.finish()
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.yaml", "run.json"}


@pytest.mark.parametrize("content", BROKEN)
def test_an_evaluation_names_the_project_whose_settings_cannot_be_read(content, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ProjectError, match=f"the settings of the run in '{tmp_path}' cannot be read: "):
        evaluate(str(tmp_path))


@pytest.mark.parametrize("content", BROKEN[:5])
@pytest.mark.parametrize("name", [".unfinished", "config.yaml"])
def test_a_run_whose_settings_cannot_be_read_is_resumed_only_on_request(name, content, tmp_path):
    project = Project(str(tmp_path))
    project.begin(params(tmp_path))
    checkpoint(project, 1)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ProjectError, match=f"whose {name} is damaged, .* or delete {name} and add --resume"):
        check(tmp_path, resume=True)
    (tmp_path / name).unlink()
    check(tmp_path, resume=True)
