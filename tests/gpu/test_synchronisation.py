"""No step waits for the GPU, as CUDA itself counts it.

`tests/trainer/test_synchronisation.py` is the same without a GPU.
"""

from __future__ import annotations

import pytest
import torch
from reads import waits
from step_kinds import KINDS, trainer_of

from trl_distill.data.split import Split

pytestmark = [
    pytest.mark.usefixtures("device"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TILED = ("top-k store", "sampled store", "another tokenizer")  # whose losses have no kernels, and read numbers
PRECISIONS = {"float32": {}, "autocast": {"bf16": True}, "bfloat16": {"dtype": "bfloat16"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_waits_for_nothing(kind, precision, tiny_model_dir, tiny_teacher_dir, tmp_path):
    trainer = trainer_of(kind, tiny_model_dir, tiny_teacher_dir, tmp_path, **PRECISIONS[precision])
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    with trainer.compute_loss_context_manager():
        trainer.compute_loss(trainer.model, batch)  # kernels are chosen and compiled
        with waits() as found:
            loss = trainer.compute_loss(trainer.model, batch)
            trainer.distiller.losses[Split.TRAIN].add(loss.detach())
    assert [line for line in found if kind not in TILED or "/trl_distill/losses/" not in line] == []
    loss.backward()
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.grad is not None)


def test_a_wait_is_seen():
    numbers = torch.ones(3, device="cuda")
    for wait in (lambda: numbers.sum().item(), lambda: numbers.nonzero(), lambda: torch.ones(3).to("cuda")):
        with waits() as found:
            wait()
        assert found
