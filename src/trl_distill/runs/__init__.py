"""One run, from its parameters to the project folder: `train`, `run` and `generate_with_teacher`."""
