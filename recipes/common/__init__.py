"""What the recipes share: arguments, data, metrics, methods, and the course of a run."""
