"""trl-distill: prompt distillation and knowledge distillation for TRL."""
