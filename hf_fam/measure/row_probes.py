"""Random probes for measuring: the contributions of every row, as numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from ..calculus.derivatives import range_scale
from ..calculus.saturation import first_derivatives
from ..flatness.batch import Batch
from ..flatness.row_values import RowValues, exact_rows, gauss_newton_rows, hessian_rows

# Function from the directions of one probe to the contributions of every row of pre-activations or logits.
RowFunction = Callable[[Sequence[Tensor]], list[Tensor]]


class RowProbes(ABC):
    """A kind of random probe.

    Attributes:
        name: name that users write.
        needs_logits: whether the layer that computes the logits is captured, too.
        can_be_exact: whether d products can replace the probes if rows are uncoupled.
        has_grouped_layerwise: whether Tr H can be computed for each group of a convolution.
    """

    name: ClassVar[str]
    needs_logits: ClassVar[bool]
    can_be_exact: ClassVar[bool]
    has_grouped_layerwise: ClassVar[bool]

    @abstractmethod
    def values(self, batch: Batch) -> RowFunction:
        """Return the function from directions to contributions on a batch."""

    def exact(self, batch: Batch) -> tuple[RowValues, int]:
        """Return the exact contributions of uncoupled rows.

        The second result is the number of Hessian-vector products.
        """
        raise TypeError(f"{self.name} has no exact form.")


class HessianRows(RowProbes):
    """Probes of the Hessian."""

    name = "hessian"
    needs_logits = False
    can_be_exact = True
    has_grouped_layerwise = True

    def values(self, batch: Batch) -> RowFunction:
        """Return the function from directions to ``u_t * (H u)_t``."""
        first, scale = _scaled_gradients(batch)
        return lambda directions: hessian_rows(batch, first, directions, scale)

    def exact(self, batch: Batch) -> tuple[RowValues, int]:
        """Return the exact contributions, by d products."""
        first, scale = _scaled_gradients(batch)
        return exact_rows(batch, first, scale), batch.linear_map.out_features * len(first)


def _scaled_gradients(batch: Batch) -> tuple[list[Tensor], Tensor | float]:
    """Return dL/dz of every call, and the scale that they were multiplied by."""
    scale = range_scale(batch.loss, batch.pre_activations)
    return first_derivatives(batch.loss, batch.pre_activations, scale), scale


class GaussNewtonRows(RowProbes):
    """Probes of the Gauss-Newton matrix."""

    name = "gauss_newton"
    needs_logits = True
    can_be_exact = False
    has_grouped_layerwise = False

    def values(self, batch: Batch) -> RowFunction:
        """Return the function from directions to ``(J u)_t * (d2L/dlogits2 J u)_t``."""
        return lambda directions: gauss_newton_rows(batch, directions)


ROW_PROBES: dict[str, RowProbes] = {kind.name: kind for kind in (HessianRows(), GaussNewtonRows())}
