"""The trainer made to be subclassed: `trl_distill.PromptDistillationTrainer`."""

from trl_distill.trainer.trainer import PromptDistillationTrainer

__all__ = ["PromptDistillationTrainer"]
