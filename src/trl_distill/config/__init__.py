"""A run's settings: fields and choices, the command's parameters, TRL's configuration, and rules across fields."""
