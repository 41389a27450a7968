"""`from autotrain.trainers.clm import train`: `trl_distill.train`."""

from trl_distill.runs.api import train

__all__ = ["train"]
