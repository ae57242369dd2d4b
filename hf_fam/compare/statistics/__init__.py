"""Decide from scores over several seeds whether a method is better than a baseline (numpy and scipy alone)."""

from .comparison import Comparison, compare_methods
from .scores import Scores
from .spending import looks
from .verdict import Verdict

__all__ = ["Comparison", "Scores", "Verdict", "compare_methods", "looks"]
