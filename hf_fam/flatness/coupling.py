"""Find which rows of the pre-activations the loss couples, by Hessian-vector products.

The shape of the input does not show it: multiple choice, preference pairs, experts and windows all flatten their rows.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, range_scale, rounding_error, vector_products
from ..calculus.recheck_schedule import RecheckSchedule
from .batch import Batch


class Coupling(str, enum.Enum):
    """Rows of the pre-activations that the second derivative of the loss couples."""

    ROWS = "rows"  # no rows: every row is independent
    ITEMS = "items"  # rows of one item (tokens of a sequence, calls of a shared layer)
    BATCH = "batch"  # different items, too (batch normalization, multiple choice, contrastive losses)


class CouplingFinder:
    """Finder of the coupling of a model's layer.

    It tests the first batches, larger ones and every hundredth. A coupling that was found once is kept: a
    smaller batch cannot remove it.

    Attributes:
        coupling: the strongest coupling so far; None before the first batch whose loss has curvature.
        has_nested_calls: whether one call of the layer used the output of another.
    """

    def __init__(self) -> None:
        self.coupling: Coupling | None = None
        self.has_nested_calls = False
        self._recheck_schedule = RecheckSchedule()
        self._largest_row_count = 0

    def __call__(self, batch: Batch) -> Coupling:
        """Return the coupling to use for this batch.

        Raises:
            SecondDerivativeError: an operation of the tail has no second derivative.
        """
        rows = sum(z[..., 0].numel() for z in batch.pre_activations)
        has_items = all(batch.linear_map.has_items(phi) for phi in batch.features) and _have_same_items(
            batch.pre_activations
        )
        if self._recheck_schedule.is_due() or rows > self._largest_row_count or self.coupling is None:
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
    first = gradients(loss, pre_activations, range_scale(loss, pre_activations))
    has_curvature: list[bool] = []

    def multiply(vectors: Sequence[Tensor]) -> list[Tensor]:
        products = vector_products(first, pre_activations, vectors, create_graph=False)
        has_curvature.append(any(bool(h.any()) for h in products))
        return products

    coupling = _find_coupling(multiply, pre_activations, features, has_items)
    return coupling if any(has_curvature) or not has_curvature else None


def _find_coupling(
    multiply: Callable[[Sequence[Tensor]], list[Tensor]],
    pre_activations: Sequence[Tensor],
    features: Sequence[Tensor],
    has_items: bool,
) -> Coupling:
    vectors = [_fixed_normal(z) for z in pre_activations]
    has_nested_calls = calls_are_nested(features, pre_activations)
    rows = _element_numbers([z[..., :1] for z in pre_activations])
    has_items = has_items and _have_same_items(pre_activations)
    if not has_items or (len(pre_activations) == 1 and pre_activations[0].dim() < 3):
        return Coupling.BATCH if has_nested_calls or _is_coupled(multiply, vectors, rows, rows) else Coupling.ROWS
    item_numbers = [_item_numbers(z) for z in pre_activations]
    if _is_coupled(multiply, vectors, item_numbers, item_numbers):
        return Coupling.BATCH
    if has_nested_calls:

        def multiply_through_features(vectors: Sequence[Tensor]) -> list[Tensor]:
            return vector_products(features, pre_activations, vectors, create_graph=False)

        directions = [_fixed_normal(phi) for phi in features]
        is_coupled = _is_coupled(
            multiply_through_features, directions, [_item_numbers(phi) for phi in features], item_numbers
        )
        return Coupling.BATCH if is_coupled else Coupling.ITEMS
    positions = [
        n.expand(z.shape[0], *n.shape[1:])
        for n, z in zip(_element_numbers([z[:1, ..., :1] for z in pre_activations]), pre_activations, strict=True)
    ]
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


def _item_numbers(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device).view(-1, *[1] * (like.dim() - 1))


def _element_numbers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the number of every element, counted over all tensors together."""
    numbers, start = [], 0
    for t in tensors:
        numbers.append(torch.arange(start, start + t.numel(), device=t.device).view(t.shape))
        start += t.numel()
    return numbers


def _is_coupled(
    multiply: Callable[[Sequence[Tensor]], list[Tensor]],
    vectors: Sequence[Tensor],
    numbers: Sequence[Tensor],
    product_numbers: Sequence[Tensor],
) -> bool:
    """Return True if a vector on rows of one number has a product on rows of another."""
    largest = max(int(n.max()) if n.numel() else 0 for n in numbers)
    for bit in range(largest.bit_length()):
        products = multiply([v * ((n >> bit) & 1) for v, n in zip(vectors, numbers, strict=True)])
        threshold = rounding_error(products)  # a fully masked token may show this much
        if any(
            (h * (1 - ((n >> bit) & 1))).abs().max() > threshold for h, n in zip(products, product_numbers, strict=True)
        ):
            return True
    return False
