"""Results without pickles: Trainer saves its arguments beside each model as one, and loading a pickle can run any code.

Nothing reads that file: a run is resumed from its checkpoint and the settings in config.yaml.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

AnyTrainer = TypeVar("AnyTrainer", bound=Trainer)


def without_pickled_arguments(trainer: AnyTrainer) -> AnyTrainer:
    """Have a trainer save models, those of checkpoints included, without `training_args.bin`; return the same one."""
    save = trainer.save_model

    def save_model(output_dir: str | None = None, _internal_call: bool = False) -> None:
        save(output_dir, _internal_call)
        if trainer.args.should_save:
            Path(output_dir or str(trainer.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    trainer.save_model = save_model  # type: ignore[method-assign]
    return trainer
