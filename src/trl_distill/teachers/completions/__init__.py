"""Completions that a teacher writes, and the files that keep them."""
