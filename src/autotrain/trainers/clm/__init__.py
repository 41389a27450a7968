"""`from autotrain.trainers.clm import train`: `trl_distill.train`."""

from trl_distill.training import train

__all__ = ["train"]
