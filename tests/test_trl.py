"""The names of TRL and transformers that are not public API; a test fails here when one moves."""

from __future__ import annotations

import inspect

import torch
import trl
from transformers import Trainer

from trl_distill._trl import gathered, has_marks


def test_gathering_is_nothing_without_zero_3():
    weight = torch.nn.Parameter(torch.ones(2))
    with gathered(weight, None):
        assert weight.sum() == 2


def test_trl_still_gathers_heads():
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    assert inspect.signature(maybe_gather_lm_head_ctx).parameters["params"].kind is inspect.Parameter.VAR_POSITIONAL


def test_trl_still_knows_the_marks_of_a_training_template():
    assert has_marks("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}")
    assert not has_marks("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def test_trl_still_lets_preparation_be_skipped():
    assert "skip_prepare_dataset" in inspect.getsource(trl.SFTTrainer.__init__)


def test_trainer_still_counts_labels_and_leaves_the_division_to_us():
    source = inspect.getsource(Trainer)
    assert "model_accepts_loss_kwargs" in source
    assert 'batch["labels"]' in source
    assert "current_gradient_accumulation_steps" in source


def test_trainer_still_has_the_methods_that_are_taken_further():
    own = {name: list(inspect.signature(getattr(trl.SFTTrainer, name)).parameters) for name in TAKEN_FURTHER}
    assert own == TAKEN_FURTHER


TAKEN_FURTHER = {
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_get_output_dir": ["self", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
