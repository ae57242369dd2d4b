"""Find which rows of the pre-activations the loss couples, by Hessian-vector products.

The shape of the input does not show it: multiple choice, preference pairs, experts and windows all flatten their rows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calculus.autograd_graph import graph_signature
from ..calculus.derivatives import range_scale, rounding_error, vector_products
from ..calculus.recheck_schedule import RecheckSchedule
from ..calculus.saturation import first_derivatives
from .batch import Batch

# The largest number of losses with different graphs that are tested.
_MAX_GRAPHS = 16


class Coupling(str, enum.Enum):
    """Rows of the pre-activations that the second derivative of the loss couples."""

    ROWS = "rows"  # no rows: every row is independent
    ITEMS = "items"  # rows of one item (tokens of a sequence, calls of a shared layer)
    BATCH = "batch"  # different items, too (batch normalization, multiple choice, contrastive losses)


class CouplingFinder:
    """Finder of the coupling of a model's layer.

    It tests the first batches, larger ones, those with a loss of a new form, and every hundredth. A coupling that was
    found once is kept: a smaller batch cannot remove it.

    Attributes:
        coupling: the strongest coupling so far; None before the first batch whose loss has curvature.
        has_nested_calls: whether one call of the layer used the output of another.
    """

    def __init__(self) -> None:
        self.coupling: Coupling | None = None
        self.has_nested_calls = False
        self._recheck_schedule = RecheckSchedule()
        self._largest_row_count = 0
        self._signatures: set[tuple[str, ...]] = set()

    def __call__(self, batch: Batch) -> Coupling:
        """Return the coupling to use for this batch.

        Raises:
            SecondDerivativeError: an operation of the tail has no second derivative.
        """
        rows = sum(z[..., 0].numel() for z in batch.pre_activations)
        has_items = all(batch.linear_map.has_items(phi) for phi in batch.features) and _have_same_items(
            batch.pre_activations
        )
        is_new = self._is_new(batch)  # in every step, so that a graph that was tested is not new later
        is_due = self._recheck_schedule.is_due() or is_new
        if is_due or rows > self._largest_row_count or self.coupling is None:
            self.has_nested_calls = self.has_nested_calls or calls_are_nested(batch.features, batch.pre_activations)
            observed = find_coupling(batch.loss, batch.pre_activations, batch.features, has_items=has_items)
            if observed is not None:
                self._largest_row_count = max(self._largest_row_count, rows)
                order = list(Coupling)
                self.coupling = observed if self.coupling is None else max(observed, self.coupling, key=order.index)
        if self.coupling is None:
            return Coupling.BATCH  # unbiased for every coupling
        if self.coupling is Coupling.ITEMS and not has_items:  # the rows of one item are unknown
            self.coupling = Coupling.BATCH
        return self.coupling

    def _is_new(self, batch: Batch) -> bool:
        """Return True if the loss has another graph than before; a graph that depends on the batch does not count."""
        signature = graph_signature(batch.loss, batch.pre_activations)
        if signature in self._signatures or len(self._signatures) == _MAX_GRAPHS:
            return False
        self._signatures.add(signature)
        return True


def find_coupling(
    loss: Tensor, pre_activations: Sequence[Tensor], features: Sequence[Tensor] = (), *, has_items: bool = True
) -> Coupling | None:
    """Return which rows the loss couples on a batch.

    The rows are numbered and split by each bit of their numbers in turn. Every pair of rows is separated at least once,
    so ``ceil(log2(rows))`` Hessian-vector products find every coupling of the second derivative. Nested calls, where
    one call of the layer uses the output of another, always count as coupled.

    Args:
        loss: a scalar in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``.
        features: input of every call; needed if calls may be nested.
        has_items: whether the first dimension counts items.

    Returns:
        The coupling. None if the loss has no curvature, for example on a batch without labels.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, requires_grad=True)
        >>> find_coupling(z.square().sum(), [z]).value, find_coupling(z.sum(0).square().sum(), [z]).value
        ('rows', 'batch')
    """
    first = first_derivatives(loss, pre_activations, range_scale(loss, pre_activations))
    has_curvature: list[Tensor] = []

    def multiply(vectors: Sequence[Tensor]) -> list[Tensor]:
        products = vector_products(first, pre_activations, vectors, create_graph=False)
        has_curvature.extend(h.any() for h in products)
        return products

    coupling = _find_coupling(multiply, pre_activations, features, has_items)
    return coupling if not has_curvature or bool(torch.stack(has_curvature).any()) else None


def _find_coupling(
    multiply: Callable[[Sequence[Tensor]], list[Tensor]],
    pre_activations: Sequence[Tensor],
    features: Sequence[Tensor],
    has_items: bool,
) -> Coupling:
    vectors = [_fixed_normal(z) for z in pre_activations]
    has_nested_calls = calls_are_nested(features, pre_activations)
    rows = _Numbers.of_elements([z[..., :1] for z in pre_activations])
    has_items = has_items and _have_same_items(pre_activations)
    if not has_items or (len(pre_activations) == 1 and pre_activations[0].dim() < 3):
        return Coupling.BATCH if has_nested_calls or _is_coupled(multiply, vectors, rows, rows) else Coupling.ROWS
    item_numbers = _Numbers.of_items(pre_activations)
    if _is_coupled(multiply, vectors, item_numbers, item_numbers):
        return Coupling.BATCH
    if has_nested_calls:

        def multiply_through_features(vectors: Sequence[Tensor]) -> list[Tensor]:
            return vector_products(features, pre_activations, vectors, create_graph=False)

        directions = [_fixed_normal(phi) for phi in features]
        is_coupled = _is_coupled(multiply_through_features, directions, _Numbers.of_items(features), item_numbers)
        return Coupling.BATCH if is_coupled else Coupling.ITEMS
    positions = _Numbers.of_elements([z[:1, ..., :1] for z in pre_activations])
    return Coupling.ITEMS if _is_coupled(multiply, vectors, positions, positions) else Coupling.ROWS


def calls_are_nested(features: Sequence[Tensor], pre_activations: Sequence[Tensor]) -> bool:
    """Return True if one call of a layer uses the output of an earlier one."""
    for k, phi in enumerate(features):
        if k and phi.requires_grad:
            earlier = list(pre_activations[:k])
            derivatives = torch.autograd.grad(phi.sum(), earlier, retain_graph=True, allow_unused=True)
            if any(g is not None for g in derivatives):
                return True
    return False


def _have_same_items(pre_activations: Sequence[Tensor]) -> bool:
    """Return True if all calls can be about the same items."""
    return len({(z.shape[0], z.dim()) for z in pre_activations}) == 1


def _fixed_normal(like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)


@dataclass(frozen=True)
class _Numbers:
    """Numbers of rows, items or positions.

    Attributes:
        tensors: int64 numbers, one tensor for each tensor of rows, in a shape that broadcasts to it.
        count: how many different numbers there are.
    """

    tensors: Sequence[Tensor]
    count: int

    @classmethod
    def of_items(cls, tensors: Sequence[Tensor]) -> _Numbers:
        """Number the first dimension of each tensor."""
        shapes = [(t.shape[0], *[1] * (t.dim() - 1)) for t in tensors]
        numbers = [torch.arange(s[0], device=t.device).view(s) for s, t in zip(shapes, tensors, strict=True)]
        return cls(numbers, max(s[0] for s in shapes))

    @classmethod
    def of_elements(cls, tensors: Sequence[Tensor]) -> _Numbers:
        """Number every element, counted over all tensors together."""
        numbers, start = [], 0
        for t in tensors:
            numbers.append(torch.arange(start, start + t.numel(), device=t.device).view(t.shape))
            start += t.numel()
        return cls(numbers, start)


def _is_coupled(
    multiply: Callable[[Sequence[Tensor]], list[Tensor]],
    vectors: Sequence[Tensor],
    numbers: _Numbers,
    product_numbers: _Numbers,
) -> bool:
    """Return True if a vector on rows of one number has a product on rows of another.

    The verdict is read once, because the host waits for the device. A CPU has nothing to wait for, so it stops early.
    """
    verdicts = []
    for bit in range(max(numbers.count - 1, 0).bit_length()):
        products = multiply([v * ((n >> bit) & 1) for v, n in zip(vectors, numbers.tensors, strict=True)])
        threshold = rounding_error(products)  # a fully masked token may show this much
        pairs = zip(products, product_numbers.tensors, strict=True)
        verdict = torch.stack([(h * (1 - ((n >> bit) & 1))).abs().max() > threshold for h, n in pairs]).any()
        if verdict.device.type == "cpu" and verdict:
            return True
        verdicts.append(verdict)
    return bool(verdicts) and bool(torch.stack(verdicts).any())
