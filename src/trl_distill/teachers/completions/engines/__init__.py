"""What runs a teacher while it writes many completions."""
