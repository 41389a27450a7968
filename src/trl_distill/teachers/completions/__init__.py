"""Generating completions (`generate`), the engines that run the teacher (`engines`), and their files (`store`)."""
