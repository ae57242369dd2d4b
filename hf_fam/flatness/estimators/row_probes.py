"""The closed form from a random sketch of the weight, for large vocabularies."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ...layer.feature_layer import FeatureLayer
from ..vocabulary import is_large
from .base import Choice, Operations
from .closed_form import LARGE_HEAD_FACTOR, ClosedForm

# Elementwise operations on the logits take as long as products over this many features.
_ELEMENTWISE_COST = 32


class RowProbes(ClosedForm):
    """The closed form from a random sketch of the weight, for large vocabularies."""

    name = "row_probes"
    can_center = False
    default_probes: ClassVar[int | None] = 16

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.row_probes = self.probes

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return True for large heads."""
        return head is layer and is_large(layer.out_features)

    def relative_cost(self, operations: Operations) -> float:
        """Return the expected extra time of a step with the default number of probes."""
        share = min(1.0, ((self.default_probes or 0) + _ELEMENTWISE_COST) / operations.in_features)
        return LARGE_HEAD_FACTOR * share * operations.layer / (3 * operations.model)

    def _choice_of_replacement(self) -> Choice:
        return dataclasses.replace(super()._choice_of_replacement(), probes=None)
