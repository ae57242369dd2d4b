"""Relative flatness of the layers of a trained model over a data set."""

from .measuring import measure_relative_flatness
from .results import FlatnessTable, LayerFlatness

__all__ = ["FlatnessTable", "LayerFlatness", "measure_relative_flatness"]
