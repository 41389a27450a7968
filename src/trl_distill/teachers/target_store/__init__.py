"""Stored targets: written once, read in every epoch."""
