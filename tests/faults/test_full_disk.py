"""A disk that fills: what is said, what is left, and what resumes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trl_distill.config.training_params import LLMTrainingParams
from trl_distill.data.full_disk import size_text
from trl_distill.data.loading import load_data
from trl_distill.errors import DataError, DistillError, ProjectError
from trl_distill.runs.disk_estimate import Planned, check_space, planned_of_teacher
from trl_distill.runs.full_disk import explaining_full_disk
from trl_distill.teachers.target_store.folder import TargetFolder
from trl_distill.trainer.checkpoints import begin, seal

SCRIPT = Path(__file__).parent / "full_disk.py"


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_full_disk_names_the_file_and_what_is_kept_and_the_run_resumes(tmp_path):
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["cases"] == 7


def test_too_little_space_is_an_error_and_just_enough_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_distill.runs.disk_estimate.free_bytes", lambda folder: 1_000_000_000)
    model, completions = (Planned(tmp_path / "run", 8e8, "the model"), Planned(tmp_path, 3e8, "rows", is_certain=False))
    said = []
    check_space([model], said.append)
    assert not said
    check_space([model, completions], said.append)
    assert "has 1.0 GB free, and this run may write up to 1.1 GB: the model 800 MB, rows 300 MB" in said[0]
    with pytest.raises(ProjectError, match=r"has 1\.0 GB free, and this run writes about 1\.6 GB \(the model 800 MB, "):
        check_space([model, model], said.append)


def test_stored_targets_are_estimated_from_the_completions(tmp_path):
    params = LLMTrainingParams(model="m", teacher_model="t", teacher_store=str(tmp_path / "s"), teacher_top_k=10)
    given = planned_of_teacher(tmp_path, params, ["x" * 400, None], vocabulary=1000, hidden=8)
    tokens, most = 100, params.distill_max_teacher_length
    assert [one.count for one in given] == [most * 8, tokens * 40 / 2, most * 40]


def test_a_complete_store_needs_no_space(tmp_path, monkeypatch):
    monkeypatch.setattr(TargetFolder, "complete", True)
    params = LLMTrainingParams(model="m", teacher_store=str(tmp_path / "s"), teacher_top_k=10)
    assert planned_of_teacher(tmp_path, params, ["x" * 400], vocabulary=1000, hidden=8) == []


def test_a_full_disk_does_not_delete_a_checkpoint_that_was_damaged_later(tmp_path):
    damaged, begun = (tmp_path / "checkpoints" / f"checkpoint-{step}" for step in (1, 2))
    for checkpoint in (damaged, begun):
        begin(checkpoint)
        (checkpoint / "optimizer.pt").write_bytes(b"weights")
    seal(damaged)
    (damaged / "optimizer.pt").write_bytes(b"w?ights")
    with pytest.raises(DistillError, match="the disk is full"), explaining_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (damaged.is_dir(), begun.is_dir()) == (True, False)


def test_a_folder_that_was_written_in_part_is_deleted_and_a_copy_is_named_by_its_new_name(tmp_path):
    (tmp_path / ".tokenizer.writing").mkdir()
    named = rf"'{tmp_path}/new' could not be written"
    with pytest.raises(DistillError, match=named), explaining_full_disk(tmp_path):
        raise OSError(errno.ENOSPC, "No space left", str(tmp_path / "old"), None, str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())


def _write(rows, path, **how):
    """Write rows as parquet, or as arrow in a compressed file."""
    if path.suffix == ".parquet":
        pq.write_table(rows, path, **how)
    else:
        with pa.ipc.new_file(path, rows.schema, options=pa.ipc.IpcWriteOptions(**how)) as file:
            file.write_table(rows)


TEXTS = pa.array(["x" * 10_000] * 2000)


@pytest.mark.parametrize(
    ("suffix", "values", "how"),
    [
        ("parquet", TEXTS, {"use_dictionary": False}),
        ("parquet", TEXTS, {}),
        ("parquet", pa.array([[{"role": "user", "content": text}] for text in TEXTS.to_pylist()]), {}),
        ("parquet", TEXTS, {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
        ("parquet", pa.array([0] * 2_500_000), {}),
        ("arrow", TEXTS, {"compression": "zstd"}),
        ("arrow", TEXTS.dictionary_encode(), {}),
    ],
)
def test_data_that_unpacks_to_more_than_the_cache_can_hold_is_refused(suffix, values, how, tmp_path, monkeypatch):
    path = tmp_path / f"rows.{suffix}"
    _write(pa.table({"text": values}), path, **how)
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("trl_distill.data.arrow_files.free_bytes", lambda folder: 15_000_000)
    with pytest.raises(
        DataError, match=r"rows\.\w+ unpacks to more than the 15 MB that are free on the disk of the cache"
    ):
        load_data(path)
    assert not list(cache.rglob("*.arrow"))
    monkeypatch.setattr("trl_distill.data.arrow_files.free_bytes", lambda folder: 25_000_000)
    rows = load_data(path)[0]
    assert len(rows) == len(values)
    monkeypatch.setattr("trl_distill.data.arrow_files.free_bytes", lambda folder: 0)
    assert load_data(path)[0].cache_files == rows.cache_files  # nothing more is written


def test_sizes_are_written_as_a_reader_has_them():
    assert [size_text(n) for n in (0, 999, 1000, 12_345, 2.5e9, 1.2e15)] == [
        "0 bytes", "999 bytes", "1.0 kB", "12 kB", "2.5 GB", "1200 TB"
    ]  # fmt: skip
