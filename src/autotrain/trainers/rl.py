"""`from autotrain.trainers.rl import PPOConfig, PPOTrainer`: `trl_distill.reinforcement`."""

from trl_distill.reinforcement import PPOConfig, PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
