"""The benchmark of a GPU runs in small on the device at hand, every side of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from forks import run_fork

pytestmark = pytest.mark.usefixtures("device")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch, capsys):
    """Return what runs benchmarks/gpu.py and gives its lines."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def with_arguments(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
        importlib.import_module("gpu").main()
        return capsys.readouterr().out.splitlines()

    return with_arguments


def figures(lines):
    """Return the figures of the last line; a side that failed has none."""
    assert not [line for line in lines if "Error" in line]
    return json.loads(lines[-1])


def test_the_gpu_benchmark_measures_the_loss(run):
    found = figures(run("head", "--tiny", "--json"))
    problem = "64 x 32 x 500, forward_kl, T=1"
    assert all(found[f"{problem}: {side}: ms"] > 0 for side in ("bare", "ours", "plain"))
    assert found["error of hidden states: T=3, float32: ours"] <= 1e-5


@pytest.mark.parametrize(
    ("part", "sides"),
    [
        ("step", ["sft", "gkd", "local", "plain", "stored", "sft lora", "self lora"]),
        ("prompt", ["sft", "gkd", "local", "unshared", "self lora"]),
    ],
)
def test_the_gpu_benchmark_measures_steps(part, sides, tmp_path):
    """In a process of their own: Liger changes the classes of a whole family of models."""
    done = run_fork([str(BENCHMARKS / "gpu.py"), part, "--tiny", "--json"], tmp_path)
    assert done.code == 0, done.errors[-3000:]
    found = figures(done.printed.splitlines())
    assert all(found[f"{part}: {side}: ms"] > 0 for side in sides)


@pytest.mark.cpu
def test_the_gpu_benchmark_measures_nothing_without_a_gpu(run):
    assert run() == ["No CUDA device is present, so nothing is measured; --tiny runs every side once on the CPU."]


def test_the_gpu_benchmark_refuses_an_unknown_part(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("loss", "--tiny")
    assert "unknown part loss; expected one of head, step and prompt." in capsys.readouterr().err


@pytest.mark.cpu
def test_a_soak_measures_memory_and_the_time_of_each_step(tmp_path):
    arguments = ["--steps", "20", "--every", "10", "--folder", str(tmp_path), "--json"]
    done = run_fork([str(BENCHMARKS / "soak.py"), *arguments], tmp_path)
    found = json.loads(done.printed.splitlines()[-1])  # a busy machine may fail it for its time
    assert abs(found["resident memory"]) < 0.1, done.errors[-3000:]
    assert "time of a step" in found
    assert {path.name for path in tmp_path.glob("store*")} == {"store", "store-1", "store-2"}


@pytest.mark.cpu
def test_a_soak_fails_on_memory_or_steps_that_grow(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    soak = importlib.import_module("soak")
    flat, warming = [100.0] * 900, [50.0] * 100
    growing = [*warming, *(100 + 0.01 * i for i in range(900))]

    def names(seconds, resident, on_device=()):
        found = soak.failures(soak.changes(soak.Measured(seconds, resident, list(on_device))))
        return [line.partition(" changes")[0] for line in found]

    assert names([*warming, *flat], [*warming, *flat], [*warming, *flat]) == []
    assert names([*warming, *flat], growing) == ["resident memory"]
    assert names([*warming, *flat], [*warming, *flat], growing) == ["device memory"]
    slower = [*warming, *flat[:450], *(120.0 for _ in range(450))]
    assert names(slower, [*warming, *flat]) == ["time of a step"]
