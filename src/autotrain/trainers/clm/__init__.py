"""`from autotrain.trainers.clm import train`: `trl_distill.train`, and its functions that evaluate."""

from trl_distill.runs.api import train
from trl_distill.runs.evaluate import evaluate, evaluate_distillation

__all__ = ["evaluate", "evaluate_distillation", "train"]
