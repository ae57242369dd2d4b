"""The base class of the estimators that average over random directions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..batch import Batch
from ..coupling import CouplingFinder
from ..directions import draw
from .base import Choice, Estimator, Operations

# Cost of the tail's double backward pass and of drawing a direction, in forward passes of the tail and of the layer.
# Fitted to seven layers of a 6-layer BERT of width 384 on a CPU, with eager attention (recipes/benchmarks/scaling.py).
_TAIL_FACTOR = 4.5
_DIRECTION_FACTOR = 3.0


class RandomProbes(Estimator):
    """Mean of a quadratic form over random directions ``u = W A phi``."""

    default_probes: ClassVar[int | None] = 1

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.coupling_finder = CouplingFinder()

    def relative_cost(self, operations: Operations) -> float:
        """Return the expected extra time of a step with one probe."""
        work = _TAIL_FACTOR * operations.tail + _DIRECTION_FACTOR * operations.layer
        return work / (3 * operations.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Return kappa of the batch, in the graph."""
        coupling = self.coupling_finder(batch)
        features = (
            [phi.detach() for phi in batch.perturbed_features] if batch.weights_only else batch.perturbed_features
        )
        probes = [
            self.probe(batch, draw(features, batch.linear_map, coupling, batch.seeds, k)) for k in range(self.probes)
        ]
        return torch.stack(probes).mean() if len(probes) > 1 else probes[0]

    @abstractmethod
    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """Return the quadratic form for one direction."""
