"""Relative flatness of the layers of a trained model over a data set."""

from .measuring import MEASURES, measure_relative_flatness
from .records import FlatnessTable, LayerFlatness

__all__ = ["MEASURES", "FlatnessTable", "LayerFlatness", "measure_relative_flatness"]
