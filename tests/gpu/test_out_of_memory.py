"""A GPU's memory that runs out: what needs less, and a smaller batch that fits."""

from __future__ import annotations

import pytest
import torch
from small_runs import losses, make

from trl_distill import DistillationSFTTrainer


class ThirdOfTheMemory(DistillationSFTTrainer):
    """Needs a third of the GPU's memory for each row of a batch."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        device = inputs["input_ids"].device
        _, total = torch.get_device_module(device).mem_get_info(device)
        torch.empty(len(inputs["input_ids"]) * total // 3, dtype=torch.uint8, device=device)
        return super().training_step(model, inputs, num_items_in_batch)


def test_an_error_of_the_gpus_memory_says_what_needs_less(tiny_model_dir, tiny_teacher_dir, tmp_path, gpu):
    trainer = make(tiny_model_dir, tiny_teacher_dir, tmp_path, kind=ThirdOfTheMemory)
    with pytest.raises(torch.OutOfMemoryError) as found:
        trainer.train()
    (note,) = found.value.__notes__
    assert note.startswith(f"Out of memory while training on {gpu}, with ")
    assert "this needs less: per_device_train_batch_size=2 with gradient_accumulation_steps=2" in note


def test_a_batch_that_fits_into_the_gpu_is_found(tiny_model_dir, tiny_teacher_dir, tmp_path):
    expected = losses(make(tiny_model_dir, tiny_teacher_dir, tmp_path / "whole"))
    trainer = make(
        tiny_model_dir, tiny_teacher_dir, tmp_path / "found", kind=ThirdOfTheMemory, auto_find_batch_size=True
    )
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    assert (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps) == (2, 2)
