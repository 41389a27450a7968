"""Devices without float64 (Apple's GPUs, some of Intel's) train, evaluate and store targets; random states are kept."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from small_runs import make
from teachers.kinds import ROWS
from teachers.test_every_kind import TEMPLATE, WORDS, local, other_tokenizer, several
from without_float64 import REFUSAL, WithoutFloat64

from trl_distill.cli import main
from trl_distill.config.devices import forked_rng, has_float64, to_float64
from trl_distill.teachers.loading import load_teacher
from trl_distill.teachers.target_store.folder import TargetFolder
from trl_distill.teachers.target_store.writer import TargetSettings, write_targets

RUN = ["--epochs", "1", "--batch-size", "2", "--logging-steps", "1", "--gradient-accumulation", "1"]


@pytest.fixture
def without_float64():
    has_float64.cache_clear()
    with WithoutFloat64() as mode:
        yield mode
    has_float64.cache_clear()


def test_the_simulated_device_refuses_float64_as_mps_does(without_float64):
    numbers = torch.ones(3, device="cpu")
    for wide in (
        torch.Tensor.double,
        lambda t: t.to(torch.float64),
        lambda t: torch.zeros_like(t, dtype=torch.float64),
    ):
        with pytest.raises(TypeError, match=REFUSAL):
            wide(numbers)
    with pytest.raises(TypeError, match=REFUSAL):
        torch.zeros(2, dtype=torch.float64, device="cpu")
    assert float(numbers.cpu().double().sum()) == 3
    assert not has_float64(numbers.device)
    assert to_float64(numbers).dtype == torch.float64


@pytest.mark.parametrize("kind", [local, several("mixture"), other_tokenizer], ids=lambda kind: kind.__name__)
def test_a_run_works_without_float64(kind, request, tmp_path, without_float64):
    rows = [{"text": words, "completion": " ".join(reversed(words.split()))} for words in WORDS]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation"):
        (data / f"{split}.json").write_text(json.dumps(rows))
    teacher, _ = kind(tmp_path, request)
    template = [] if "--teacher-config" in teacher else ["--teacher-prompt-template", TEMPLATE]
    command = ["llm", "--model", "embedded", "--data-path", str(data), *RUN, *template, *teacher]
    evaluation = ["--valid-split", "validation", "--eval-strategy", "epoch"]
    done = CliRunner().invoke(main, [*command, *evaluation, "--project-name", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    history = json.loads((tmp_path / "run" / "metrics.json").read_text())["history"]
    assert {"loss", "kl"} <= history[0].keys()
    assert any("eval_kl" in line for line in history)


@pytest.mark.parametrize("settings", [
    {"teacher_model": "ema", "distill_on_policy_fraction": 1.0, "distill_on_policy_max_new_tokens": 3},
    {"distill_divergence": "jsd", "packing": True, "max_length": 64},
], ids=["ema on what the student writes", "packed"])  # fmt: skip
def test_a_trainer_works_without_float64(settings, tiny_model_dir, tiny_teacher_dir, tmp_path, without_float64):
    teacher = settings.pop("teacher_model", tiny_teacher_dir)
    trainer = make(tiny_model_dir, teacher, tmp_path, **settings)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("kind", ["topk", "sample", "hidden"])
def test_a_store_is_the_one_that_a_device_with_float64_writes(kind, tiny_teacher_dir, tmp_path):
    def written(name):
        folder = TargetFolder(tmp_path / name)
        settings = TargetSettings(20, (1.0, 2.0), kind=kind)
        write_targets(load_teacher(str(tiny_teacher_dir)), ROWS, folder, settings, progress=False)
        return (folder.path / "shard-00000.parquet").read_bytes()

    expected = written("with")
    has_float64.cache_clear()
    with WithoutFloat64() as mode:
        assert written("without") == expected
    has_float64.cache_clear()
    assert mode.left > 0


def test_sampling_restores_the_devices_random_state():
    before = torch.get_rng_state()
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(1)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_the_state_of_the_device_at_hand_is_forked(kind, monkeypatch):
    """Each kind of device has functions of its own for its state; here they keep it in a list."""
    states = {"now": torch.tensor([1])}
    module = torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: states["now"])
    monkeypatch.setattr(module, "set_rng_state", lambda state, device: states.update(now=state))
    with forked_rng(torch.device(kind)):
        states["now"] = torch.tensor([2])
    assert states["now"].tolist() == [1]
