"""Stored targets: written once, read in each epoch."""
