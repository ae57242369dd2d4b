"""What all probe estimators share: find the coupling, draw directions, average."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from .batch import Batch
from .coupling import CouplingFinder
from .directions import draw


class RandomProbes(ABC):
    """Mean of a quadratic form over random directions ``u = W A phi``.

    Args:
        probes: how many directions are averaged.
    """

    def __init__(self, probes: int = 1) -> None:
        self.probes = probes
        self.coupling = CouplingFinder()

    def __call__(self, batch: Batch) -> Tensor:
        """kappa of the batch, in the graph."""
        coupling = self.coupling(batch)
        features = [phi.detach() for phi in batch.perturbed] if batch.weights_only else batch.perturbed
        kappa = batch.loss.new_zeros(())
        for k in range(self.probes):
            kappa = kappa + self.probe(batch, draw(features, batch.linear_map, coupling, batch.seeds, k))
        return kappa / self.probes

    @abstractmethod
    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """The quadratic form for one direction."""
