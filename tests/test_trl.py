"""The names of TRL and transformers that are not public API; a test fails here when one moves."""

from __future__ import annotations

import inspect

import torch
import trl
from datasets import Dataset

from trl_distill._trl import gathered, has_marks


def test_gathered_does_nothing_without_zero_3():
    weight = torch.nn.Parameter(torch.ones(2))
    with gathered(weight, None):
        assert weight.sum() == 2


def test_trl_still_gathers_heads():
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    assert inspect.signature(maybe_gather_lm_head_ctx).parameters["params"].kind is inspect.Parameter.VAR_POSITIONAL


def test_trl_still_knows_the_marks_of_a_training_template():
    assert has_marks("{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}")
    assert not has_marks("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def sft_config(folder, **more):
    return trl.SFTConfig(str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", **more)


def test_sft_trainer_leaves_rows_alone_with_skip_prepare_dataset(tiny_model_dir, tmp_path):
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "ours": ["kept"]})
    config = sft_config(tmp_path, dataset_kwargs={"skip_prepare_dataset": True})
    assert list(trl.SFTTrainer(str(tiny_model_dir), config, train_dataset=rows).train_dataset) == list(rows)


def test_trainer_counts_the_labels_of_a_whole_step_and_does_not_divide_the_loss(tiny_model_dir, tmp_path):
    given = []

    class Constant(trl.SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            given.append((int(num_items_in_batch), self.current_gradient_accumulation_steps))
            return 0 * next(model.parameters()).sum() + 1

    config = sft_config(
        tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=2, max_steps=1, logging_steps=1
    )
    trainer = Constant(
        str(tiny_model_dir), config, train_dataset=Dataset.from_dict({"input_ids": [[5, 6, 7], [5, 6, 7, 8, 9]]})
    )
    trainer.train()
    assert given == [(2 + 4, 2)] * 2  # the first label of a row is no target
    assert trainer.state.log_history[0]["loss"] == 2


def test_overridden_trainer_methods_still_have_their_signatures():
    own = {name: list(inspect.signature(getattr(trl.SFTTrainer, name)).parameters) for name in TAKEN_FURTHER}
    assert own == TAKEN_FURTHER


TAKEN_FURTHER = {
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_get_output_dir": ["self", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
}
