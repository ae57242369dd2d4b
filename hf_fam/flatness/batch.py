"""The input of every estimator: one batch, seen from the feature layer."""

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
    """Seeds of the random signs of one batch.

    Attributes:
        numbers: seeds, the same on every process and micro-batch of a step.
        first_item: position of this batch's first item in the whole batch of the step.
        items: number of items in this batch, if the first dimension has several rows for each item. None if every entry
            of the first dimension is an item.
    """

    numbers: tuple[int, ...] = (0,)
    first_item: int = 0
    items: int | None = None

    def row_keys(self, rows: int, first_dimension: int, stream: Sequence[int | str], device: torch.device) -> Tensor:
        """Return a random key for every row, shape ``(items, rows of an item)``.

        A key is a function of the seeds, the item and the position in the item.

        Args:
            rows: number of rows.
            first_dimension: size of the first dimension of the tensor. It counts the items if `items` is None.
            stream: name of the random numbers, so that different ones are independent.
            device: device of the result.
        """
        count = self.items if self.items and first_dimension % self.items == 0 else first_dimension
        items = torch.arange(self.first_item, self.first_item + count, device=device) << 32
        positions = torch.arange(rows // max(count, 1), device=device)
        return subkeys(key((*self.numbers, *stream), device), items.unsqueeze(-1) + positions)


@dataclass(frozen=True)
class Batch:
    """One batch, after its forward pass.

    Attributes:
        loss: L, a scalar in the graph.
        features: input of every call of the layer, in the layer's own layout: for a linear layer phi, ``(..., m)``.
        pre_activations: z of every call of the layer, channels last, shapes ``(..., d)``.
        linear_map: W, and how it acts on features.
        logits: output of every call of the head. If the layer is the head, these are the pre-activations.
        seeds: seeds of the random signs.
        weights_only: let the gradient reach W alone.
        center: shape ``(m,)``, subtracted from the features before they are perturbed; or None.
        graph: the operations between the layer and the loss, found on first use.
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
        """Return the operations between the layer and the loss."""
        return TailGraph(self.loss, self.pre_activations, self.logits)

    @property
    def perturbed_features(self) -> Sequence[Tensor]:
        """Return the features that kappa perturbs, centered if there is a center."""
        return self.features if self.center is None else [phi - self.center for phi in self.features]

    @property
    def weight(self) -> Tensor:
        """Return W, shape ``(d, m)``."""
        return self.linear_map.weight
