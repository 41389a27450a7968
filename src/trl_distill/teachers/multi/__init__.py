"""Several teachers in one run."""
