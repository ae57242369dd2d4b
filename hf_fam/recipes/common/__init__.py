"""Modules that the recipes share: arguments, data, metrics, models, training methods and the steps of a run."""
