"""What every estimator gets: one batch, seen from the feature layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..calculus.autograd_graph import TailGraph
from ..calculus.signs import key, subkeys
from ..layer.linear_map import LinearMap


@dataclass(frozen=True)
class Seeds:
    """Where the random signs of one batch come from.

    Attributes:
        numbers: alike on every process and micro-batch of a step.
        first_item: position of this batch's first item in the whole batch of the step.
        items: how many items this batch has, where rows are items and tokens in one; None if every row is an item.
    """

    numbers: tuple[int, ...] = (0,)
    first_item: int = 0
    items: int | None = None

    def of_rows(self, rows: int, first_dimension: int, stream: Sequence[int | str], device: torch.device) -> Tensor:
        """A key for every row, a function of the numbers, the item and the position in it, shape ``(items, ...)``.

        Args:
            rows: how many.
            first_dimension: of what the rows are taken of; the number of items, unless `items` says otherwise.
            stream: tells apart what is drawn.
            device: of the result.
        """
        count = self.items if self.items and first_dimension % self.items == 0 else first_dimension
        items = torch.arange(self.first_item, self.first_item + count, device=device) << 32
        positions = torch.arange(rows // max(count, 1), device=device)
        return subkeys(key((*self.numbers, *stream), device), items.unsqueeze(-1) + positions)


@dataclass(frozen=True)
class Batch:
    """One batch, after its forward pass.

    Attributes:
        loss: L, scalar, in the graph.
        features: what every call of the layer got, in the layer's own layout: for a row layer phi, ``(..., m)``.
        pre_activations: z of every call of the layer, channels last, shapes ``(..., d)``.
        linear_map: W, and how it acts on features.
        logits: what every call of the head returned; the pre-activations themselves where the layer is the head.
        seeds: where random signs come from.
        weights_only: let the gradient reach W alone.
        center: what is taken off the features where they are perturbed, shape ``(m,)``, or None.
        graph: what lies between the layer and the loss; walked when it is asked for first.
    """

    loss: Tensor
    features: Sequence[Tensor]
    pre_activations: Sequence[Tensor]
    linear_map: LinearMap
    logits: Sequence[Tensor] = ()
    seeds: Seeds = field(default_factory=Seeds)
    weights_only: bool = False
    center: Tensor | None = None

    @cached_property
    def graph(self) -> TailGraph:
        """What lies between the layer and the loss, with the logits marked."""
        return TailGraph(self.loss, self.pre_activations, self.logits)

    @property
    def perturbed(self) -> Sequence[Tensor]:
        """The features that kappa perturbs: centered, if there is a center."""
        return self.features if self.center is None else [phi - self.center for phi in self.features]

    @property
    def weight(self) -> Tensor:
        """W, shape ``(d, m)``."""
        return self.linear_map.weight


class RecheckSchedule:
    """Whether the form of the loss is examined again: at the first batch, then at every hundredth."""

    EVERY = 100

    def __init__(self) -> None:
        self._calls = 0

    def due(self) -> bool:
        """Count one call; return whether the loss is examined at it."""
        self._calls += 1
        return self._calls % self.EVERY == 1
