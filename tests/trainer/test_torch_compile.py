"""`--torch-compile`: the same losses, and weights that plain transformers loads, at the end and from checkpoints.

With the backend that captures graphs and generates no code; inductor takes a minute for each model.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from trainer.test_compute import settings  # noqa: F401 - a fixture
from transformers import AutoModelForCausalLM

from trl_distill import LLMTrainingParams, run
from trl_distill.config.sft_config import from_params
from trl_distill.errors import ParamsError

# torch.compile looks at attributes that warn
pytestmark = pytest.mark.filterwarnings("default")
KINDS = {  # what is written is as long as the completions of the data: each length that is new makes a graph
    "whole, on-policy": {"distill_on_policy_fraction": 0.5, "distill_on_policy_max_new_tokens": 3},
    "adapter": {"peft": True, "teacher_model": "self", "teacher_prompt_template": "a {input}", "lora_dropout": 0.0},
}


@pytest.fixture
def eager(monkeypatch):
    """Returns what has runs from now on compile by that backend."""

    def eager_config(params):
        args = from_params(params)
        args.torch_compile_backend = "eager"
        return args

    torch._dynamo.reset()
    counters.clear()
    yield lambda: monkeypatch.setattr("trl_distill.runs.prepare.from_params", eager_config)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run_has_the_same_losses_and_loads_like_any_other(kind, settings, eager, tmp_path, capsys):  # noqa: F811
    given = {
        **settings, **KINDS[kind], "lr": 1e-2, "valid_split": "train[:4]", "logging_steps": 1, "max_steps": 2,
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
    }  # fmt: skip
    given["model"] = str(make_model(tmp_path / "student", layers=1))  # a graph takes a second for each layer
    plain = run(LLMTrainingParams(**given | {"project_name": str(tmp_path / "plain")}))
    eager()
    result = run(LLMTrainingParams(**given, torch_compile=True))
    assert counters["frames"]["ok"] > 0
    assert "; compiled by eager\n" in capsys.readouterr().out
    for line, other in zip(result.trainer.state.log_history, plain.trainer.state.log_history, strict=True):
        assert {n: line[n] for n in ("loss", "eval_loss") if n in line} == pytest.approx(
            {n: other[n] for n in ("loss", "eval_loss") if n in other}, rel=1e-4
        )
    folder, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "checkpoint-2"
    ids = torch.tensor([[5, 6, 7]])
    for place in (folder, checkpoint):
        assert not any("_orig_mod" in name for file in place.glob("*.safetensors") for name in load_file(file))
        loaded = AutoModelForCausalLM.from_pretrained(place)
        torch.testing.assert_close(loaded(ids).logits, result.model(ids).logits, rtol=1e-5, atol=1e-6)
    written = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(result.model.generate(ids, **written), loaded.generate(ids, **written))


def test_torch_compile_without_a_compiler_is_refused(settings, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ParamsError, match=r"^torch_compile needs a C\+\+ compiler on a CPU.*or drop torch_compile"):
        run(LLMTrainingParams(**settings, torch_compile=True))
