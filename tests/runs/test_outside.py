"""Whatever a project says, and whatever links it holds: nothing outside it is changed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from trl_distill import LLMTrainingParams, run
from trl_distill.cli import main

pytestmark = pytest.mark.usefixtures("device")

OUTSIDE = ["../outside/victim.txt", "..", "../outside", ".", "", "a/../../outside", 7, None]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def outside(tmp_path):
    """Files of somebody else's, some with the names of a run's; they must stay as they are."""
    folder = tmp_path / "outside"
    (folder / "checkpoints" / "checkpoint-99").mkdir(parents=True)
    for name in ("victim.txt", "weights", "checkpoints/checkpoint-99/trainer_state.json", "README.md", "metrics.jsonl"):
        (folder / name).write_text("{}")
    (folder / "completions").write_text('{"key": "unknown", "ids": [1], "finished": true}\n')
    before = contents(folder)
    yield folder
    assert contents(folder) == before


@pytest.fixture
def settings(tiny_model_dir, tiny_teacher_dir, tmp_path):
    data = tmp_path / "queries.json"
    data.write_text(json.dumps([{"text": text} for text in ("a b", "c", "d e f", "g")]))
    return {
        "model": str(tiny_model_dir), "teacher_model": str(tiny_teacher_dir), "data_path": str(data),
        "teacher_prompt_template": "e f {input}", "distill_max_teacher_length": 4, "max_steps": 1,
        "gradient_accumulation": 1, "project_name": str(tmp_path / "project"),
    }  # fmt: skip


def test_overwriting_a_project_changes_nothing_outside_it(settings, outside, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    names = [*OUTSIDE, str(outside), str(outside / "victim.txt"), "old.safetensors", "adapter_model.safetensors"]
    (project / "run.json").write_text(json.dumps({"files": names}))
    (project / ".unfinished").write_text(json.dumps({"replaces": names}))
    (project / "old.safetensors").write_text("of an earlier run")
    links = {
        "checkpoints": "checkpoints", ".writing": ".", "tensorboard": ".", "adapter_model.safetensors": "weights",
        "README.md": "README.md", "metrics.jsonl": "metrics.jsonl", "teacher_completions.jsonl": "completions",
    }  # fmt: skip
    for name, target in links.items():
        (project / name).symlink_to(outside / target)
    (project / ".lock").hardlink_to(outside / "victim.txt")
    run(LLMTrainingParams(**settings, overwrite=True, save_steps=1))
    assert not [path for path in project.rglob("*") if path.is_symlink()]
    assert not (project / "old.safetensors").exists()
    assert "unknown" in (project / "teacher_completions.jsonl").read_text()  # it was read
    assert [path.name for path in (project / "checkpoints").glob("checkpoint-*")] == ["checkpoint-1"]
    AutoModelForCausalLM.from_pretrained(project)


def test_a_project_that_is_a_link_to_another_disk_is_written_there(settings, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "project").symlink_to(tmp_path / "disk")
    run(LLMTrainingParams(**settings))
    assert (tmp_path / "project").is_symlink()
    assert (tmp_path / "disk" / "run.json").is_file()
    assert not [path for path in (tmp_path / "disk").rglob("*") if path.name.startswith(".")]


def test_repairing_a_store_deletes_nothing_outside_it(settings, outside, tmp_path):
    from trl_distill.teachers.target_store.folder import TargetFolder

    def teach(*more):
        flags = {name: settings[name] for name in ("model", "teacher_model", "data_path", "teacher_prompt_template")}
        given = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), value)]
        arguments = ["teach", *given, "--distill-max-teacher-length", "4", "--output", str(tmp_path / "store"), *more]
        return CliRunner().invoke(main, arguments)

    assert teach().exit_code == 0
    store = TargetFolder(tmp_path / "store")
    before, manifest = contents(store.path), store.manifest()
    for name in [name for name in OUTSIDE if isinstance(name, str)]:
        store.write_manifest({**manifest, "files": {**manifest["files"], name: "0" * 64}})
        refused = teach()
        assert refused.exit_code == 2
        assert f"manifest.json names {name!r}, a file outside the store" in refused.stderr
        repaired = teach("--repair")
        assert repaired.exit_code == 0, repaired.stderr
        assert contents(store.path) == before
    for name, target in ((".parts", outside), ("tokenizer", outside), ("shard-00000.parquet", outside / "weights")):
        path = store.path / name
        if path.is_dir():
            path.rename(tmp_path / "tokenizer-of-the-store")
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        if name != ".parts":
            assert " is a link, or in a linked folder" in teach().stderr
        repaired = teach("--repair")
        assert repaired.exit_code == 0, repaired.stderr
        assert contents(store.path) == before
        assert not path.is_symlink()
