"""The trainers, their set-up, and what goes with TRL's SFTTrainer."""
