"""Evaluation: completions of student and teacher on the same rows, scores and a verdict."""
