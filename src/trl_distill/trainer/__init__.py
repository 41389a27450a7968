"""The trainers, their set-up, and compatibility with TRL's SFTTrainer."""
