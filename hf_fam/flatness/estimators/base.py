"""The base class of all estimators: their traits and methods."""

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
    """Part of a training step in which an estimator's term acts."""

    LOSS = "the loss"
    FORWARD_PASS = "the forward pass"
    BACKWARD_PASS = "the backward pass"


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one item's forward pass, and the layer's shape.

    Attributes:
        model: operations of the whole model.
        layer: operations of the layer itself.
        tail: operations of all modules that are called after the layer.
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
    """Model, layer and options that an estimator is made for.

    Attributes:
        model: the model.
        layer: the feature layer.
        head: the layer that computes the logits, which may be the feature layer itself; None if it is unknown.
        probes: number of random probes to average; None for the default.
        weights_only: let the gradient reach W alone.
        smoothing: eps of the smoothed kappa, at least 0 and below 1.
        must_smooth: refuse a loss whose smoothed curvature is not defined, instead of using its own curvature.
        is_head_by_default: whether the user named no layer, so that the last one was taken for the head.
    """

    model: nn.Module
    layer: FeatureLayer
    head: FeatureLayer | None
    probes: int | None = None
    weights_only: bool = False
    smoothing: float = 0.0
    must_smooth: bool = True
    is_head_by_default: bool = False

    @property
    def at_head(self) -> bool:
        """Return True if the layer computes the logits."""
        return self.head is self.layer


class Estimator(ABC):
    """An estimator of the relative flatness of a batch.

    Calling it returns a scalar in the autograd graph, in the units of the loss.

    A subclass sets its traits as class attributes. After `register`, its name works wherever an estimator is named:
    ``RelativeFlatness(estimator=...)``, ``fam_estimator``, ``hf-fam layers`` and the table in the documentation.

    Attributes:
        name: name that users write.
        default_strength: default lambda.
        acts_in: part of the training step in which the term acts.
        tail_derivatives: highest derivative of the loss by the layer's outputs that a training step computes; 0 if the
            estimator does not differentiate the loss.
        needs_logits: whether the layer that computes the logits is watched, too.
        can_center: whether kappa can be computed around the mean of the features.
        default_probes: default number of random probes; None for an estimator without probes.
        weights_only_possible: whether the gradient can be restricted to W.
        only_at_head: whether it supports only the layer that computes the logits.
        can_smooth: whether it computes the smoothed kappa.

    Args:
        choice: model, layer and options.

    Raises:
        ValueError: the estimator does not support the layer; the message says what to use instead.

    Examples:
        >>> import torch
        >>> from hf_fam import RelativeFlatness
        >>> from hf_fam.flatness.estimators import Estimator, register, unregister
        >>> @register
        ... class WeightNorm(Estimator):
        ...     name, default_strength, tail_derivatives = "weight_norm", 0.25, 1
        ...
        ...     def __call__(self, batch):
        ...         return batch.weight.square().sum()
        >>> layer = torch.nn.Linear(2, 3)
        >>> flatness = RelativeFlatness(layer, estimator="weight_norm")
        >>> with flatness.capture():
        ...     loss = torch.nn.functional.cross_entropy(layer(torch.ones(4, 2)), torch.tensor([0, 1, 2, 0]))
        >>> torch.equal(flatness(loss), layer.weight.square().sum())
        True
        >>> unregister("weight_norm")
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
    can_smooth: ClassVar[bool] = False

    def __init__(self, choice: Choice) -> None:
        self.choice, self.layer = choice, choice.layer
        self.weights_only, self.smoothing = choice.weights_only, choice.smoothing
        self.probes = choice.probes or self.default_probes or 1
        if self.weights_only and not self.weights_only_possible:
            raise ValueError(
                f'gradient="weights_only" is not possible with estimator="{self.name}": use "hessian" or '
                '"gauss_newton".'
            )
        if self.smoothing and not self.can_smooth:
            raise ValueError(
                f'smoothing={self.smoothing:g} (fam_smoothing) is not possible with estimator="{self.name}": set it to '
                '0, or use "closed_form", "row_probes" or "gauss_newton".'
            )
        if self.weights_only and self.tail_derivatives == 3:
            self.tail_derivatives = 2  # the Hessian is held constant

    @classmethod
    def make(cls, choice: Choice) -> Estimator:
        """Return an estimator for a choice."""
        return cls(choice)

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return True if ``estimator="auto"`` chooses this one at a layer."""
        return False

    def relative_cost(self, operations: Operations) -> float | None:
        """Return the expected extra time of a training step.

        The unit is a step of plain training. None if the time is unknown.
        """
        return None

    def can_center_layer(self) -> bool:
        """Return True if the features of the layer can be centered."""
        return self.can_center and isinstance(self.layer.linear_map, RowMap)

    def refuse_to_center(self) -> None:
        """Refuse to center the features if the layer or the estimator cannot.

        Raises:
            ValueError: the features cannot be centered; the message says what to do.
        """
        if not isinstance(self.layer.linear_map, RowMap):
            raise ValueError(
                f"center=True (fam_center) is for linear layers, but '{self.layer.name}' is a convolution: set it to "
                "False."
            )
        if not self.can_center_layer():
            raise ValueError(
                f"center=True (fam_center) is not possible with estimator=\"{self.name}\" at '{self.layer.name}': "
                'set it to False, or use "hessian" or "perturbation".'
            )

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Prepare for the next forward pass.

        Args:
            strength: lambda; None if the caller did not give one.
            next_seeds: returns new seeds for the random numbers of the forward pass.
            mean: mean of the features, shape ``(m,)``, if it is known.
        """

    def for_batch(self, batch: Batch) -> Estimator:
        """Return the estimator to use for a batch: this one or a substitute."""
        return self

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that this estimator does not support.

        Called when the loss is checked: at the first batches, then at every hundredth.

        Raises:
            ValueError: the batch is not supported; the message says what to do.
        """

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Return kappa of the batch."""

    def replacement(self, error: NoClosedForm, batch: Batch) -> Estimator:
        """Return the estimator that replaces this one for the rest of the training.

        Args:
            error: why this estimator does not support the loss.
            batch: the batch after its forward pass.

        Raises:
            ValueError: there is no replacement; the message says what to do.
        """
        raise error

    def read_checks(self) -> None:
        """Act on what was checked on the device since the last call, and wait for it."""

    def gradient_squares(self, loss: Tensor, kappa: Tensor, reference: Tensor) -> Tensor | None:
        """Return ``||d kappa||^2`` and ``||d loss||^2`` by a tensor, shape ``(2,)``.

        None if kappa has no gradient.

        Args:
            loss: loss of the batch.
            kappa: kappa of the batch, as this object returned it.
            reference: the tensor to differentiate by: the features or the layer's outputs.
        """
        if not kappa.requires_grad:
            return None
        return torch.stack([_gradient_norm(y, reference).square() for y in (kappa, loss)])

    def for_sharded_model(self) -> Estimator:
        """Return this or another estimator, for a model that FSDP or DeepSpeed shards.

        They free weights between their forward and backward passes, or take every derivative for the backward pass. So
        only derivatives that the loss's own backward pass takes are right.

        Raises:
            ValueError: the estimator takes other derivatives; the message says what to choose.
        """
        raise ValueError(
            f'estimator="{self.name}" does not work in a model that FSDP shards or DeepSpeed trains, because it '
            'differentiates the loss before the backward pass. Use "auto" or "closed_form" for the head, or '
            '"perturbation" for any layer (docs/distributed.md).'
        )

    def forget(self) -> None:
        """Release the last forward pass, which gets no backward pass."""


def _gradient_norm(output: Tensor, reference: Tensor) -> Tensor:
    scale = range_scale(output, [reference])
    (gradient,) = gradients(output, [reference], scale, create_graph=False)
    return torch.linalg.vector_norm(gradient.to(wide(gradient.dtype))) / scale
