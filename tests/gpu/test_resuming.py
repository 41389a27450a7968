"""A run that is resumed on a GPU goes on as it would have, its random state on the device included."""

from __future__ import annotations

import pytest
import torch
from small_runs import make
from transformers import AutoModelForCausalLM


def logged(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("settings", [
    {}, {"bf16": True}, {"fp16": True}, {"distill_on_policy_fraction": 0.5, "distill_on_policy_max_new_tokens": 3},
    {"teacher_model": "ema"},
], ids=["float32", "bf16", "fp16", "on policy", "ema"])  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one(settings, tiny_model_dir, tiny_teacher_dir, tmp_path, gpu):
    settings = dict(settings)
    teacher = settings.pop("teacher_model", tiny_teacher_dir)

    def run():
        # dropout draws from the device's random state
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attention_dropout=0.3)
        kept = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **settings}
        return make(tiny_model_dir, teacher, tmp_path, model=model, **kept)

    whole = run()
    whole.train()
    resumed = run()
    torch.rand(3, device=gpu)  # what was drawn in between changes nothing
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert {p.device for p in resumed.model.parameters()} == {gpu}
    assert logged(resumed)[2:] == pytest.approx(logged(whole)[2:], rel=1e-3)
    for (name, mine), other in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert (mine - other).norm() <= 1e-2 * other.norm(), name
