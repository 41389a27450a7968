"""Identities that hold whatever the numbers are."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from small_runs import on_device
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_distill import DistillationSFTConfig, DistillationSFTTrainer
from trl_distill.config.devices import accelerator
from trl_distill.data.collator import DistillationCollator

pytestmark = pytest.mark.usefixtures("device")

PAIRS = {"prompt": ["a b", "c", "d e f", "g"], "completion": [" c d", " e f g a", " b", " d c b"]}
ROWS = [
    {"student_prompt": [5, 6], "teacher_prompt": [5, 6, 7, 8], "completion": [10, 11, 12]},
    {"student_prompt": [6], "teacher_prompt": [9, 5], "completion": [13, 9]},
    {"student_prompt": [7, 7, 7], "teacher_prompt": [10], "completion": [8]},
]


def common(folder):
    return {
        "output_dir": str(folder), "bf16": False, "use_cpu": accelerator() is None, "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False, "per_device_train_batch_size": 4, "max_steps": 1, "save_strategy": "no",
        "dataloader_pin_memory": False,
    }  # fmt: skip


def distilling(student, teacher, folder, data=PAIRS, **settings):
    config = DistillationSFTConfig(**common(folder), use_distillation=True, teacher_model=str(teacher), **settings)
    return DistillationSFTTrainer(
        AutoModelForCausalLM.from_pretrained(student), config, train_dataset=Dataset.from_dict(data),
        processing_class=AutoTokenizer.from_pretrained(student),
    )  # fmt: skip


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_model_dir, tmp_path):
    prompts = [*PAIRS["prompt"][:-1], "another, or the run is refused"]
    data = {**PAIRS, "teacher_prompt": prompts}
    trainer = distilling(tiny_model_dir, tiny_model_dir, tmp_path, data=data, distill_alpha=1.0)
    alike = trainer.train_dataset.select(range(len(prompts) - 1))
    figures = trainer.evaluate(alike)
    assert figures["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["eval_top1_agreement"] == 1
    loss = trainer.compute_loss(trainer.model, on_device(trainer, trainer.data_collator(list(alike))))
    loss.backward()
    assert max(p.grad.abs().max() for p in trainer.model.parameters()) < 1e-5


def test_alpha_0_is_trls_loss_on_prompt_and_completion(tiny_model_dir, tiny_teacher_dir, tmp_path):
    ours = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path, distill_alpha=0.0)
    theirs = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir), SFTConfig(**common(tmp_path)),
        train_dataset=Dataset.from_dict(PAIRS), processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
    )  # fmt: skip
    mine = ours.compute_loss(ours.model, next(iter(ours.get_train_dataloader())))
    other = theirs.compute_loss(theirs.model, next(iter(theirs.get_train_dataloader())))
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_the_order_and_the_padding_of_a_batch_change_nothing(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    trainer.model.eval()
    losses = []
    for pad, multiple, rows in ((2, None, ROWS), (2, 16, ROWS), (3, 8, ROWS[::-1]), (1, None, ROWS[1:] + ROWS[:1])):
        batch = DistillationCollator(pad_token_id=pad, pad_to_multiple_of=multiple)(rows)
        losses.append(trainer.compute_loss(trainer.model, on_device(trainer, batch)))
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)


def test_a_batch_is_the_token_weighted_mean_of_its_rows(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    trainer.model.eval()
    collate = DistillationCollator(pad_token_id=2)
    tokens = [len(row["completion"]) for row in ROWS]
    alone = [trainer.compute_loss(trainer.model, on_device(trainer, collate([row]))) for row in ROWS]
    together = trainer.compute_loss(trainer.model, on_device(trainer, collate(ROWS)))
    weighted = sum(n * loss for n, loss in zip(tokens, alone, strict=True)) / sum(tokens)
    torch.testing.assert_close(together, weighted, rtol=1e-5, atol=1e-6)


def test_a_batch_without_completion_tokens_is_a_finite_differentiable_zero(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = on_device(trainer, DistillationCollator(pad_token_id=2)(ROWS))
    batch["labels"][:] = -100
    batch["teacher_labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in trainer.model.parameters())


def test_both_sides_must_mark_the_same_tokens(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = distilling(tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = on_device(trainer, DistillationCollator(pad_token_id=2)(ROWS))
    batch["teacher_labels"][0, -1] = -100
    batch["teacher_labels"][0, 4] = -100
    del batch["layout"]  # which says what the collator has marked
    with pytest.raises(RuntimeError, match="must mark the same tokens"):
        trainer.compute_loss(trainer.model, batch)
