"""Which rows of the pre-activations react to each other, found out by Hessian-vector products.

The shape of the input proves nothing: multiple choice, preference pairs, experts and windows all flatten.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..calculus.derivatives import gradients, range_scale, rounding_error, vector_products
from .batch import Batch, RecheckSchedule


class Coupling(str, enum.Enum):
    """Which rows of the pre-activations are coupled by the second derivative of the loss."""

    ROWS = "rows"  # none: every row is on its own
    ITEMS = "items"  # rows of one item (tokens of a sequence, calls of a shared layer), but not the items
    BATCH = "batch"  # items too (batch normalization, multiple choice, contrastive losses)


class CouplingFinder:
    """The coupling of a model's layer: found at the first batch, at every larger one, and again now and then.

    What was once found stays found, so that a batch of one after a batch of many changes nothing.

    Attributes:
        nested: one call of the layer has been seen to feed another.
    """

    def __init__(self) -> None:
        self.found: Coupling | None = None
        self.nested = False
        self._schedule = RecheckSchedule()
        self._most_rows = 0

    def __call__(self, batch: Batch) -> Coupling:
        """The coupling to use for this batch.

        Raises:
            SecondDerivativeError: an operation of the tail has no second derivative.
        """
        rows = sum(z[..., 0].numel() for z in batch.pre_activations)
        items = all(batch.linear_map.has_items(phi) for phi in batch.features) and _alike(batch.pre_activations)
        if self._schedule.due() or rows > self._most_rows or self.found is None:
            self.nested = self.nested or calls_are_nested(batch.features, batch.pre_activations)
            now = find_coupling(batch.loss, batch.pre_activations, batch.features, items=items)
            if now is not None:
                self._most_rows = max(self._most_rows, rows)
                strength = list(Coupling)
                self.found = now if self.found is None else max(now, self.found, key=strength.index)
        if self.found is None:
            return Coupling.BATCH  # which is right whatever is coupled
        if self.found is Coupling.ITEMS and not items:  # which items are the same can no longer be told
            self.found = Coupling.BATCH
        return self.found


def find_coupling(
    loss: Tensor, pre_activations: Sequence[Tensor], features: Sequence[Tensor] = (), *, items: bool = True
) -> Coupling | None:
    """Which rows the loss couples at this point.

    Rows are numbered and split by each bit of their number in turn, so that every pair is separated at least once:
    ``ceil(log2(rows))`` Hessian-vector products find every coupling that the second derivative has here. Calls that
    feed one another are coupled in any case.

    Args:
        loss: scalar, in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``.
        features: what every call got; needed where one call may feed another.
        items: whether the first dimension counts items.

    Returns:
        None where the loss has no curvature, as in a batch without labels: nothing can be told there.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, requires_grad=True)
        >>> find_coupling(z.square().sum(), [z]).value, find_coupling(z.sum(0).square().sum(), [z]).value
        ('rows', 'batch')
    """
    first = gradients(loss, pre_activations, range_scale(loss, pre_activations))
    curved: list[bool] = []

    def products(moved: Sequence[Tensor]) -> list[Tensor]:
        answers = vector_products(first, pre_activations, moved, create_graph=False)
        curved.append(any(bool(h.any()) for h in answers))
        return answers

    found = _coupling(products, pre_activations, features, items)
    return found if any(curved) or not curved else None


def _coupling(
    products: Callable[[Sequence[Tensor]], list[Tensor]],
    pre_activations: Sequence[Tensor],
    features: Sequence[Tensor],
    items: bool,
) -> Coupling:
    vectors = [_fixed_normal(z) for z in pre_activations]
    nested = calls_are_nested(features, pre_activations)
    rows = _numbered([z[..., :1] for z in pre_activations])
    items = items and _alike(pre_activations)
    if not items or (len(pre_activations) == 1 and pre_activations[0].dim() < 3):
        return Coupling.BATCH if nested or _respond(products, vectors, rows, rows) else Coupling.ROWS
    of_items = [_item_numbers(z) for z in pre_activations]
    if _respond(products, vectors, of_items, of_items):
        return Coupling.BATCH
    if nested:

        def pulled(moved: Sequence[Tensor]) -> list[Tensor]:
            return vector_products(features, pre_activations, moved, create_graph=False)

        directions = [_fixed_normal(phi) for phi in features]
        apart = _respond(pulled, directions, [_item_numbers(phi) for phi in features], of_items)
        return Coupling.BATCH if apart else Coupling.ITEMS
    positions = [
        n.expand(z.shape[0], *n.shape[1:])
        for n, z in zip(_numbered([z[:1, ..., :1] for z in pre_activations]), pre_activations, strict=True)
    ]
    return Coupling.ITEMS if _respond(products, vectors, positions, positions) else Coupling.ROWS


def calls_are_nested(features: Sequence[Tensor], pre_activations: Sequence[Tensor]) -> bool:
    """Whether the output of one call of the layer is used for the features of a later one."""
    for k, phi in enumerate(features):
        if k and phi.requires_grad:
            earlier = list(pre_activations[:k])
            found = torch.autograd.grad(phi.sum(), earlier, retain_graph=True, allow_unused=True)
            if any(g is not None for g in found):
                return True
    return False


def _alike(pre_activations: Sequence[Tensor]) -> bool:
    """Whether all calls are about the same items."""
    return len({(z.shape[0], z.dim()) for z in pre_activations}) == 1


def _fixed_normal(like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)


def _item_numbers(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], device=like.device).view(-1, *[1] * (like.dim() - 1))


def _numbered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every element's running number, over all tensors together."""
    numbers, start = [], 0
    for t in tensors:
        numbers.append(torch.arange(start, start + t.numel(), device=t.device).view(t.shape))
        start += t.numel()
    return numbers


def _respond(
    products: Callable[[Sequence[Tensor]], list[Tensor]],
    vectors: Sequence[Tensor],
    numbers: Sequence[Tensor],
    answering: Sequence[Tensor],
) -> bool:
    """Whether what has one number answers to a direction on what has another."""
    largest = max(int(n.max()) if n.numel() else 0 for n in numbers)
    for bit in range(largest.bit_length()):
        answers = products([v * ((n >> bit) & 1) for v, n in zip(vectors, numbers, strict=True)])
        threshold = rounding_error(answers)  # which is what a fully masked token may answer with
        if any((h * (1 - ((n >> bit) & 1))).abs().max() > threshold for h, n in zip(answers, answering, strict=True)):
            return True
    return False
