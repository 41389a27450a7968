"""`from autotrain.trainers.clm.params import LLMTrainingParams`: `trl_distill.LLMTrainingParams`."""

from trl_distill.config.training_params import LLMTrainingParams

__all__ = ["LLMTrainingParams"]
