"""What an estimator is: its traits, and what it does with a batch."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...calculus.derivatives import gradients, range_scale, wide
from ...layer.feature_layer import FeatureLayer
from ...layer.linear_map import RowMap
from ..batch import Batch, Seeds
from ..head_loss import NoClosedForm


class ActsIn(enum.Enum):
    """Where an estimator's term acts in a training step."""

    LOSS = "the loss"
    FORWARD_PASS = "the forward pass"
    BACKWARD_PASS = "the backward pass"


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one item's forward pass, and the shape of the layer.

    Attributes:
        model: of the whole model.
        layer: of the layer itself.
        tail: of everything that is called after the layer.
        out_features: d.
        in_features: m.
    """

    model: int
    layer: int
    tail: int
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Choice:
    """What an estimator is made for.

    Attributes:
        model: the model.
        layer: the feature layer.
        head: the layer into the logits; the feature layer itself where it is the head; None if none is known.
        probes: how many random probes are averaged; None for the default.
        weights_only: let the gradient reach W alone.
        is_head_by_default: nobody named the layer: it was taken for the head.
    """

    model: nn.Module
    layer: FeatureLayer
    head: FeatureLayer | None
    probes: int | None = None
    weights_only: bool = False
    is_head_by_default: bool = False

    @property
    def at_head(self) -> bool:
        """Whether the layer is the one into the logits."""
        return self.head is self.layer


class Estimator(ABC):
    """Relative flatness of a batch: a scalar in the graph, in the units of the loss.

    A subclass states its traits as class attributes, is registered with `register`, and can then be named wherever an
    estimator is: ``RelativeFlatness(estimator=...)``, ``fam_estimator``, ``hf-fam layers``, the table in the
    documentation.

    Attributes:
        name: what users write.
        default_strength: lambda where none is given.
        acts_in: where the term acts.
        tail_derivatives: highest order of the derivatives of the loss by the layer's outputs that training with the
            term takes, in the step's own graph; 0 where the loss is not differentiated by us at all.
        needs_logits: the layer into the logits is watched, too.
        can_center: kappa around the mean of the features exists.
        default_probes: number of random probes where none is given; None for an estimator without probes.
        weights_only_possible: the gradient can be restricted to W.
        only_at_head: it serves the layer into the logits alone.

    Args:
        choice: what it is made for.

    Raises:
        ValueError: it cannot serve the layer; the message names the remedy.
    """

    name: str
    default_strength: float
    acts_in: ActsIn = ActsIn.LOSS
    tail_derivatives: int = 3
    needs_logits: ClassVar[bool] = False
    can_center: ClassVar[bool] = True
    default_probes: ClassVar[int | None] = None
    weights_only_possible: ClassVar[bool] = True
    only_at_head: ClassVar[bool] = False

    def __init__(self, choice: Choice) -> None:
        self.choice, self.layer = choice, choice.layer
        self.weights_only = choice.weights_only
        self.probes = choice.probes or self.default_probes or 1
        if self.weights_only and not self.weights_only_possible:
            raise ValueError(
                f'gradient="weights_only" is not possible with estimator="{self.name}": use "hessian" or '
                '"gauss_newton".'
            )
        if self.weights_only and self.tail_derivatives == 3:
            self.tail_derivatives = 2  # the Hessian is held constant

    @classmethod
    def make(cls, choice: Choice) -> Estimator:
        """Return an estimator for a choice."""
        return cls(choice)

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return whether ``estimator="auto"`` takes this one at a layer."""
        return False

    def relative_cost(self, operations: Operations) -> float | None:
        """Return the expected extra time of a training step, as a fraction of plain training's; None if unknown."""
        return None

    def centers(self) -> bool:
        """Return whether the layer has a form with centered features under this estimator."""
        return self.can_center and isinstance(self.layer.linear_map, RowMap)

    def refuse_to_center(self) -> None:
        """Refuse to center the features where there is no such form.

        Raises:
            ValueError: with the remedy.
        """
        if not isinstance(self.layer.linear_map, RowMap):
            raise ValueError(
                f"center=True (fam_center) is for linear layers, and '{self.layer.name}' is a convolution, whose "
                "padding would move with the mean: leave it at False."
            )
        if not self.centers():
            raise ValueError(
                f"center=True (fam_center) is not possible with estimator=\"{self.name}\" at '{self.layer.name}': "
                'leave it at False, or use "hessian" or "perturbation".'
            )

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Prepare for the next forward pass.

        Args:
            strength: lambda; None where the caller did not say it.
            next_seeds: returns where random numbers of the forward pass come from, and counts its calls.
            mean: the features' mean, shape ``(m,)``, where one is known.
        """

    def for_batch(self, batch: Batch) -> Estimator:
        """Return the estimator that serves a batch: this one, or another that takes its place."""
        return self

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that this estimator cannot serve, whenever the form of the loss is examined.

        Raises:
            ValueError: with the remedy.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return kappa of the batch."""

    def replacement(self, error: NoClosedForm, batch: Batch) -> Estimator:
        """Return the estimator to use from now on for a loss that this one cannot serve.

        Raises:
            ValueError: there is none; the message names the remedy.
        """
        raise error

    def gradient_squares(self, loss: Tensor, kappa: Tensor, reference: Tensor) -> Tensor | None:
        """Return ``||d kappa||^2`` and ``||d loss||^2`` by a tensor, shape ``(2,)``; None if kappa has no gradient.

        Args:
            loss: of the batch.
            kappa: what calling this object returned for the batch.
            reference: the features, or the layer's outputs.
        """
        if not kappa.requires_grad:
            return None
        return torch.stack([_gradient_norm(y, reference).square() for y in (kappa, loss)])

    def adapt_to_sharding(self) -> None:
        """Do without what a sharded model cannot do."""

    def forget(self) -> None:
        """Let go of the last forward pass, for which no backward pass will come."""


def _gradient_norm(output: Tensor, reference: Tensor) -> Tensor:
    scale = range_scale(output, [reference])
    (gradient,) = gradients(output, [reference], scale, create_graph=False)
    return torch.linalg.vector_norm(gradient.to(wide(gradient.dtype))) / scale
