"""Checks and measurements on a GPU, prepared so that one call does them all."""
