"""`auto_find_batch_size`: a smaller batch after memory ran out, and the same rows per optimizer step."""

from __future__ import annotations

import pytest
import torch
from small_runs import check_teacher_is_apart, losses, make
from transformers import TrainerState
from trl import SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer, LLMTrainingParams, run
from trl_distill.errors import ParamsError
from trl_distill.trainer import registry
from trl_distill.trainer.batch_finder import smaller_batch


def with_memory_for(rows, *, from_step=0, base=DistillationSFTTrainer):
    """Return a trainer for which more rows than these are too many from a step on, after the backward pass."""

    class TooSmallAMachine(base):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if len(inputs["input_ids"]) > rows and self.state.global_step >= from_step:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss

    return TooSmallAMachine


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def steps_logged(trainer):
    return [line["step"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    ("given", "expected"),
    [((4, 4), (2, 8)), ((3, 4), (1, 12)), ((6, 1), (3, 2)), ((10, 3), (5, 6)), ((7, 2), (2, 7)), ((1, 4), None)],
)
def test_a_smaller_batch_has_the_same_global_one(given, expected):
    assert smaller_batch(*given) == expected


def test_a_smaller_batch_learns_from_the_same_rows_per_step(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 3}
    whole = make(tiny_model_dir, tiny_teacher_dir, tmp_path / "whole", **settings)
    expected = losses(whole)
    kind = with_memory_for(1)
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path / "found", kind=kind, auto_find_batch_size=True, **settings
    )
    capsys.readouterr()
    assert losses(trainer) == pytest.approx(expected, rel=1e-5)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (1, 8)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Out of memory")]
    assert said == [
        "Out of memory with 4 rows per batch at step 0; continuing with per_device_train_batch_size=2 "
        "gradient_accumulation_steps=4, the same rows per optimizer step.",
        "Out of memory with 2 rows per batch at step 0; continuing with per_device_train_batch_size=1 "
        "gradient_accumulation_steps=8, the same rows per optimizer step.",
    ]
    torch.testing.assert_close(weights(trainer), weights(whole), rtol=1e-3, atol=1e-5)
    check_teacher_is_apart(trainer)
    tokens = {line["step"]: line["num_tokens"] for line in whole.state.log_history if "num_tokens" in line}
    assert tokens == {line["step"]: line["num_tokens"] for line in trainer.state.log_history if "num_tokens" in line}


@pytest.mark.parametrize("save_strategy", ["no", "steps"])
def test_training_continues_from_the_step_that_ran_out_of_memory(save_strategy, tiny_model_dir, tmp_path):
    """With a moving average as the teacher, which would move twice for the steps that were done."""
    settings = {
        "per_device_train_batch_size": 4, "max_steps": 5, "save_strategy": save_strategy, "save_steps": 2,
        "teacher_ema_decay": 0.5,
    }  # fmt: skip
    whole = make(tiny_model_dir, "ema", tmp_path / "whole", **settings)
    expected = losses(whole)
    kind = with_memory_for(2, from_step=3)
    trainer = make(tiny_model_dir, "ema", tmp_path / "found", kind=kind, auto_find_batch_size=True, **settings)
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    assert steps_logged(trainer) == [1, 2, 3, 4, 5]
    torch.testing.assert_close(weights(trainer), weights(whole), rtol=1e-3, atol=1e-5)
    averages = [list(one.teacher.weights.average.values()) for one in (trainer, whole)]
    torch.testing.assert_close(*averages, rtol=1e-3, atol=1e-5)
    left = sorted(path.name for path in (tmp_path / "found").glob("checkpoint-*"))
    if save_strategy == "steps":
        written = TrainerState.load_from_json(str(tmp_path / "found" / "checkpoint-3" / "trainer_state.json"))
        assert written.train_batch_size == 2  # with another, Trainer warns
    assert left == ([] if save_strategy == "no" else ["checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-5"])


def test_a_row_that_does_not_fit_ends_the_search(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, kind=with_memory_for(0), auto_find_batch_size=True)
    with pytest.raises(RuntimeError, match="No executable batch size found"):
        trainer.train()


def test_a_resumed_run_has_the_batch_that_was_found(tiny_model_dir, tiny_teacher_dir, tmp_path, capsys):
    settings = {
        "kind": with_memory_for(2), "auto_find_batch_size": True, "per_device_train_batch_size": 4, "max_steps": 4,
        "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    expected = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path / "run", **settings))
    resumed = make(tiny_model_dir, tiny_teacher_dir, tmp_path / "run", **settings)
    capsys.readouterr()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert "Out of memory" not in capsys.readouterr().out
    assert (resumed.args.per_device_train_batch_size, resumed.args.gradient_accumulation_steps) == (2, 2)
    assert [line["loss"] for line in resumed.state.log_history if "loss" in line] == pytest.approx(expected)


def test_the_command_keeps_the_rows_per_step_without_a_teacher_too(tiny_model_dir, tmp_path, monkeypatch, capsys):
    rows = [{"text": f"{first} {second}"} for first in "abcd" for second in "efg"]
    settings = {"trainer": "sft", "batch_size": 4, "gradient_accumulation": 2, "logging_steps": 1, "lr": 1e-2}

    def trained(name, **more):
        params = LLMTrainingParams(
            model=str(tiny_model_dir), data_path=rows, project_name=str(tmp_path / name), **settings, **more
        )
        return run(params).trainer

    whole = trained("whole", max_steps=3)
    monkeypatch.setitem(registry._trainers, ("sft", False), with_memory_for(2, base=SFTTrainer))
    found = trained("found", max_steps=3, auto_find_batch_size=True)
    assert steps_logged(found) == [1, 2, 3]
    torch.testing.assert_close(weights(found), weights(whole), rtol=1e-3, atol=1e-5)
    assert (
        "Out of memory with 4 rows per batch at step 0; continuing with batch_size=2 gradient_accumulation=4, the same "
        "rows per optimizer step."
    ) in capsys.readouterr().out


def test_several_processes_cannot_find_a_batch_size(tiny_model_dir, tiny_teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(DistillationSFTConfig, "world_size", 2)
    params = LLMTrainingParams(
        model=str(tiny_model_dir), teacher_model=str(tiny_teacher_dir), data_path=[{"text": "a b"}],
        project_name=str(tmp_path / "run"), auto_find_batch_size=True,
    )  # fmt: skip
    with pytest.raises(ParamsError, match=r"^auto_find_batch_size is for one process, and there are 2"):
        run(params)
