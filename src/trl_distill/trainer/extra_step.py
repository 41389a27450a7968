"""The step that transformers' Trainer makes too many when it resumes from a checkpoint of the last step.

It looks at `max_steps` after a step. A run that ended between its last checkpoint and its result would train on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def has_trained(trainer: Trainer) -> bool:
    """Whether all steps are made; the loop then ends if it is given no batch. Before training there are none."""
    done = 0 < trainer.state.max_steps <= trainer.state.global_step
    if done:
        trainer.control.should_training_stop = True
    return done


def without_extra_step(trainer: Trainer) -> None:
    """Have a trainer of TRL's end where it should; ours does by itself."""
    get = trainer.get_batch_samples

    def get_batch_samples(
        epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        return ([], None) if has_trained(trainer) else get(epoch_iterator, num_batches, device)

    trainer.get_batch_samples = get_batch_samples  # type: ignore[method-assign]
