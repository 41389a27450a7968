"""Engines that generate many completions."""
