"""`from autotrain.trainers.rl import PPOConfig, PPOTrainer`: `trl_distill.trainer.reinforcement`."""

from trl_distill.trainer.reinforcement import PPOConfig, PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
