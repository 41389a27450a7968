"""No step reads a tensor's value on the host, whatever teaches and however rows share sequences."""

from __future__ import annotations

import pytest
import torch
from reads import Reads
from step_kinds import KINDS, trainer_of

from trl_distill.data.split import Split
from trl_distill.models.batch_layout import LAYOUT


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_reads_no_tensor_value(kind, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(kind, tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with Reads() as reads:
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(8))
        trainer.distiller.losses[Split.TRAIN].add(loss.detach())
    assert reads.found == []
    assert loss.isfinite()
    with Reads() as reads:
        trainer.distiller.losses[Split.TRAIN].check()
    assert reads.found != []  # once a line
    trainer.model.eval()
    with Reads() as reads, torch.no_grad():
        trainer.compute_loss(trainer.model, batch)
    assert reads.found == []


def test_reads_of_tensor_values_are_detected(tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of("local", tiny_model_dir, tiny_teacher_dir, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    right = trainer.compute_loss(trainer.model, batch)
    del batch[LAYOUT]  # what the collator knows has to be read then
    with Reads() as reads:
        again = trainer.compute_loss(trainer.model, batch)
    assert {line.split()[1] for line in reads.found} == {"cpu", "numpy"}
    assert again == right
    values = torch.arange(4.0)
    for read in (
        lambda: values.tolist(), lambda: float(values.sum()), lambda: values[values > 1], lambda: values.nonzero(),
        lambda: values.unique(), lambda: torch.tensor([1.0], device="cpu"), lambda: values.new_tensor([1]),
        lambda: torch.repeat_interleave(torch.tensor([1, 2])),
    ):  # fmt: skip
        with Reads() as reads:
            read()
        assert reads.found
