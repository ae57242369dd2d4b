"""Flatness-aware training in ``transformers.Trainer``."""
