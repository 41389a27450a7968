"""What training has changed: completions of the student and the teacher on the same rows, figures, a verdict."""
