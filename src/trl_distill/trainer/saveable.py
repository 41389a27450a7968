"""Keeps weights that training has broken from being saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from ..errors import DistillError
from ..models.broken_weights import broken_weights, named
from .checkpoints import kept
from .finite import Fault, remedy
from .model_setup import is_sharded

if TYPE_CHECKING:
    from transformers import Trainer

    from .distiller import Distiller


def check_saveable(trainer: Trainer, *, together: bool) -> None:
    """Refuse to save weights that training has broken: not finite, or such that the student's loss is NaN.

    Args:
        trainer: A trainer. The loss is that of a student that learns from a teacher, on its last batch.
        together: Whether all ranks call this; they have to if weights are sharded.

    Raises:
        DistillError: Saying what to do.
    """
    check_weights(trainer)
    distiller: Distiller | None = getattr(trainer, "distiller", None)
    loss = None if distiller is None else distiller.student_cross_entropy()
    if distiller is None or loss is None:
        return
    is_nan = loss.isnan().int()[None]
    if (trainer.accelerator.gather(is_nan) if together else is_nan).any():
        raise DistillError(
            f"training diverged: with the weights of step {trainer.state.global_step} the student's logits are NaN, "
            f"and they are not saved; {remedy(distiller.trainer, Fault.STUDENT)}; {kept(trainer.args.output_dir)}."
        )


def check_weights(trainer: Trainer) -> None:
    """Refuse to save weights that are not finite; all ranks call it together if they are sharded.

    Raises:
        DistillError: Naming parameters and the step.
    """
    model: Any = trainer.model
    found = broken_weights(model, trained_only=True)
    if is_sharded(trainer):
        found = list(dict.fromkeys(gather_object(found)))
    if found:
        raise DistillError(
            f"training diverged: at step {trainer.state.global_step} the weights hold numbers that are not finite, or "
            f"above 1.8e19 ({named(found)}), and are not saved; lower --lr (it is {trainer.args.learning_rate:g}); "
            f"{kept(trainer.args.output_dir)}."
        )
