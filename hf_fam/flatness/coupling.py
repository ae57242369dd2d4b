"""Which rows of the pre-activations react to each other, found out by Hessian-vector products.

The shape of the input proves nothing: multiple choice, preference pairs, experts and windows all flatten.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from .batch import Batch, RecheckSchedule
from .curvature import gradients, vector_products


class Coupling(str, enum.Enum):
    """Which rows of the pre-activations are coupled by the second derivative of the loss."""

    ROWS = "rows"  # none: every row is on its own
    ITEMS = "items"  # rows of one item (tokens of a sequence), but not the items
    BATCH = "batch"  # items too (batch normalisation, multiple choice, contrastive losses)


class CouplingFinder:
    """The coupling of a model's layer: found at the first batch, at every larger one, and again now and then.

    What was once found stays found, so that a batch of one after a batch of many changes nothing.
    """

    def __init__(self) -> None:
        self.found: Coupling | None = None
        self._schedule = RecheckSchedule()
        self._most_rows = 0

    def __call__(self, batch: Batch) -> Coupling:
        """The coupling to use for this batch.

        Raises:
            ValueError: one call of the layer feeds another.
            SecondDerivativeError: an operation of the tail has no second derivative.
        """
        rows = sum(z[..., 0].numel() for z in batch.pre_activations)
        if self._schedule.due() or rows > self._most_rows or self.found is None:
            self._most_rows = max(self._most_rows, rows)
            _refuse_nested_calls(batch)
            now = find_coupling(batch.loss, batch.pre_activations)
            strength = list(Coupling)
            self.found = now if self.found is None else max(now, self.found, key=strength.index)
        return self.found


def find_coupling(loss: Tensor, pre_activations: Sequence[Tensor]) -> Coupling:
    """Which rows the loss couples at this point.

    Rows are numbered and split by each bit of their number in turn, so that every pair is separated at least once:
    ``ceil(log2(rows))`` Hessian-vector products find every coupling that the second derivative has here.

    Args:
        loss: scalar, in the graph.
        pre_activations: z of every call of the layer, shapes ``(..., d)``; several calls are taken to be coupled as
            a batch if any two rows are.

    Examples:
        >>> import torch
        >>> z = torch.randn(4, 3, requires_grad=True)
        >>> find_coupling(z.square().sum(), [z]).value, find_coupling(z.sum(0).square().sum(), [z]).value
        ('rows', 'batch')
    """
    first = gradients(loss, pre_activations)
    vectors = [_fixed_normal(z) for z in pre_activations]
    rows = _numbered([z[..., :1] for z in pre_activations])
    if len(pre_activations) > 1 or pre_activations[0].dim() < 3:
        return Coupling.BATCH if _respond(first, pre_activations, vectors, rows) else Coupling.ROWS
    (z,) = pre_activations
    items = torch.arange(z.shape[0], device=z.device).view(-1, *[1] * (z.dim() - 1)).expand_as(rows[0])
    if _respond(first, [z], vectors, [items]):
        return Coupling.BATCH
    positions = _numbered([z[:1, ..., :1]])[0].expand_as(rows[0])
    return Coupling.ITEMS if _respond(first, [z], vectors, [positions]) else Coupling.ROWS


def _fixed_normal(like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)


def _numbered(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Every element's running number, over all tensors together."""
    numbers, start = [], 0
    for t in tensors:
        numbers.append(torch.arange(start, start + t.numel(), device=t.device).view(t.shape))
        start += t.numel()
    return numbers


def _respond(
    first: Sequence[Tensor], calls: Sequence[Tensor], vectors: Sequence[Tensor], numbers: Sequence[Tensor]
) -> bool:
    """Whether rows answer to a direction on rows that have another number."""
    largest = max(int(n.max()) if n.numel() else 0 for n in numbers)
    for bit in range(largest.bit_length()):
        inside = [((n >> bit) & 1).bool() for n in numbers]
        moved = [v * mask for v, mask in zip(vectors, inside, strict=True)]
        products = vector_products(first, calls, moved, create_graph=False)
        # A fully masked token answers with zero or with a rounding error.
        threshold = max(100 * torch.finfo(h.dtype).eps * h.abs().max() for h in products)
        if any((h * ~mask).abs().max() > threshold for h, mask in zip(products, inside, strict=True)):
            return True
    return False


def _refuse_nested_calls(batch: Batch) -> None:
    """Without this, the part of the second derivative that runs from one call into the next would be missing."""
    for k, phi in enumerate(batch.features):
        if k and phi.requires_grad:
            earlier = list(batch.pre_activations[:k])
            found = torch.autograd.grad(phi.sum(), earlier, retain_graph=True, allow_unused=True)
            if any(g is not None for g in found):
                raise ValueError(
                    "the feature layer is called several times in a forward pass and one call feeds the next "
                    "(shared blocks): choose a layer that is called once, such as the head."
                )
