"""`from autotrain.trainers.clm import train`: `trl_distill.train`, and what else is for data, stages and evaluation."""

from trl_distill.runs.api import train
from trl_distill.runs.diverse_queries import prepare_distillation_data
from trl_distill.runs.evaluate import evaluate, evaluate_distillation
from trl_distill.runs.queries_from_prompt import queries_from_prompt
from trl_distill.runs.stages import train_stages
from trl_distill.runs.tuning.api import tune

__all__ = [
    "evaluate",
    "evaluate_distillation",
    "prepare_distillation_data",
    "queries_from_prompt",
    "train",
    "train_stages",
    "tune",
]
