"""Decisions that all processes take together."""
