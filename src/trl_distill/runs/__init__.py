"""One run from its parameters to the files that it leaves: `train`, `run` and `generate_with_teacher`."""
