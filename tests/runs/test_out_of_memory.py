"""Memory that runs out: one sentence with the settings that need less, at each door."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model
from forks import run_forks
from small_runs import make

import trl_distill
from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, train
from trl_distill.errors import OutOfMemory
from trl_distill.models.loading import ModelSource
from trl_distill.models.out_of_memory import is_out_of_memory
from trl_distill.runs.export.api import export
from trl_distill.teachers.local.teacher import LocalTeacher
from trl_distill.trainer.memory_advice import Footprint, Weights, memory_sentence

LIMITED = Path(__file__).parents[1] / "limited_memory.py"
GIB = 2**30
TOO_MUCH = 2**60  # bytes


def allocate_too_much(*_, **__):
    """Ask torch for more memory than any machine has, which fails as it does when less is left."""
    return torch.empty(TOO_MUCH, dtype=torch.uint8)


def raised(work):
    with pytest.raises(Exception) as found:  # noqa: PT011 - any that an allocation raises
        work()
    return found.value


@pytest.mark.parametrize(
    "error",
    [
        raised(allocate_too_much),
        raised(lambda: bytearray(TOO_MUCH)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("unable to mmap 245440408 bytes from file <m.safetensors>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["torch", "python", "cuda", "cublas", "cudnn", "mapped", "system"],
)
def test_errors_of_memory_are_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"), OSError(errno.ENOSPC, "")],
)
def test_other_errors_are_not_errors_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"red {i} cat " * 40, "completion": "cat red"} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def large_teacher(tmp_path_factory):
    """A teacher of 100 MiB."""
    return make_model(tmp_path_factory.mktemp("models") / "large", hidden=64, extra_rows=400_000)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process as Linux has them")
@pytest.mark.cpu
def test_training_ends_with_what_needs_less(queries, tmp_path):
    arguments = [
        *("llm", "--model", "embedded", "--teacher-model", "embedded", "--data-path", str(queries)),
        *("--teacher-prompt-template", "Reverse.\n{input}\n", "--batch-size", "64"),
        *("--project-name", str(tmp_path / "run")),
    ]
    (ended,) = run_forks([str(LIMITED), "300", *arguments], [{}], tmp_path / "printed")
    assert ended.code == 1
    error = ended.errors.splitlines()[-1]
    assert error.startswith("aitraining: error: out of memory while training on the CPU, with ")
    assert (
        "; this needs less: --batch-size 32 with --gradient-accumulation 8, --auto-find-batch-size, "
        "--gradient-checkpointing or --peft (about "
    ) in error
    assert len(error) < 500


@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process as Linux has them")
@pytest.mark.cpu
def test_loading_a_teacher_ends_with_what_needs_less(tiny_model_dir, large_teacher, queries, tmp_path):
    arguments = [
        *("llm", "--model", str(tiny_model_dir), "--teacher-model", str(large_teacher), "--data-path", str(queries)),
        *("--teacher-prompt-template", "Reverse.\n{input}\n", "--project-name", str(tmp_path / "run")),
    ]
    (ended,) = run_forks([str(LIMITED), "100", *arguments], [{}], tmp_path / "printed")
    assert ended.code == 1
    error = ended.errors.splitlines()[-1]
    assert error.startswith("aitraining: error: out of memory while loading the teacher on the CPU, with ")
    assert "are for the teacher's weights" in error


def test_a_trainer_keeps_the_error_and_adds_a_note(tiny_model_dir, tiny_teacher_dir, tmp_path):
    class TooSmall(DistillationSFTTrainer):
        def training_step(self, *_, **__):
            return allocate_too_much()

        def prediction_step(self, *_, **__):
            return allocate_too_much()

    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, kind=TooSmall)
    error = raised(trainer.train)
    assert type(error) is RuntimeError
    (note,) = error.__notes__
    assert note.startswith("Out of memory while training on ")
    assert "this needs less: per_device_train_batch_size=2 with gradient_accumulation_steps=2, " in note
    (note,) = raised(trainer.evaluate).__notes__
    assert note.startswith("Out of memory while evaluating on ")
    assert "this needs less: per_device_eval_batch_size=4" in note


@pytest.fixture(scope="module")
def finished(tiny_model_dir, tiny_teacher_dir, tmp_path_factory):
    """A run's folder and the model that it returned."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    rows = [{"prompt": f"a {letter}", "completion": " c d"} for letter in "abcdefg"]
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=rows, project_name=str(folder),
        teacher_prompt_template="g f e {input}", max_steps=1, peft=True,
    )  # fmt: skip
    return folder, train(params), params


def test_a_run_names_fields(finished, tmp_path, monkeypatch):
    _, _, params = finished
    monkeypatch.setattr(DistillationSFTTrainer, "training_step", allocate_too_much)
    with pytest.raises(
        OutOfMemory, match=r"^out of memory while training on .*batch_size=2 with gradient_accum"
    ) as got:
        train(LLMTrainingParams(**{**vars(params), "project_name": str(tmp_path / "run")}))
    assert isinstance(got.value, MemoryError)
    assert "DefaultCPUAllocator" in str(got.value.__cause__)


def test_writing_completions_names_a_smaller_batch(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalTeacher, "generate", allocate_too_much)
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=[{"text": "a b"}],
        teacher_prompt_template="g f e {input}", project_name=str(tmp_path / "run"),
    )  # fmt: skip
    with pytest.raises(OutOfMemory, match=r"while generating completions .* less: teacher_batch_size=8"):
        train(params)


def test_an_evaluation_names_a_smaller_batch(finished, monkeypatch):
    monkeypatch.setattr(LocalTeacher, "generate", allocate_too_much)
    with pytest.raises(OutOfMemory, match=r"^out of memory while .*teacher_batch_size"):
        trl_distill.evaluate(finished[1], [{"text": "a b"}])


def test_an_export_names_half_precision(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSource, "_weights", allocate_too_much)
    with pytest.raises(OutOfMemory, match=r"^out of memory while exporting .*; give dtype='bfloat16', which"):
        export(str(finished[0]), "merged", output=str(tmp_path / "merged"))


LARGE, SMALL = Weights(30 * GIB, 20 * GIB), Weights(2 * GIB, GIB)


@pytest.mark.parametrize(
    ("footprint", "settings", "named", "unnamed"),
    [
        (
            Footprint(SMALL, 2 * GIB, LARGE, storable=True),
            {},
            ["--teacher-store", "--teacher-quantization int4 (about 20.0 GiB less)"],
            ["--peft", "--batch-size", "self"],
        ),
        (Footprint(SMALL, 2 * GIB, Weights(10 * GIB, 0), storable=True), {}, ["--teacher-store"], ["int4"]),
        (Footprint(SMALL, 2 * GIB, LARGE), {}, ["--teacher-quantization"], ["--teacher-store"]),
        (Footprint(LARGE, 30 * GIB), {}, ["which is more than there is; combine --peft"], ["--teacher", "--quant"]),
        (Footprint(LARGE, 0, adapter=True), {}, ["--quantization int4 (about 20.0 GiB less)"], ["--peft"]),
        (Footprint(SMALL, 0, adapter=True), {}, ["--batch-size 4 with --grad", "--gradient-ch"], ["int8", "--peft"]),
        (Footprint(), {"per_device_train_batch_size": 1}, ["--gradient-checkpointing"], ["--batch", "--auto"]),
        (
            Footprint(),
            {"per_device_train_batch_size": 1, "gradient_checkpointing": True},
            ["give a smaller --block-size, or smaller models."],
            ["--gradient"],
        ),
    ],
)
def test_only_what_applies_is_named(footprint, settings, named, unnamed, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_distill.trainer.memory_advice.memory_for_this_process", lambda _: 24 * GIB)
    settings = {"gradient_checkpointing": False, "per_device_train_batch_size": 8, **settings}
    args = DistillationSFTConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **settings)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    error.doing = "training"
    sentence = memory_sentence(error, args, footprint)
    assert [part for part in named if part not in sentence] == []
    assert [part for part in unnamed if part in sentence] == []
    assert len(sentence) < 500
