"""Completions that a teacher writes (`generate`), what runs it meanwhile (`engines`), and their files (`store`)."""
