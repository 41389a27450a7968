"""`autotrain.trainers` of trl-distill: re-exports."""
