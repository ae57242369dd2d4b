"""The estimator of a head whose term acts in the backward pass."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...calculus.derivatives import wide
from ...inputs.text import quote
from ...layer.linear_map import LinearMap
from ..batch import Batch, Seeds
from ..head_loss import NoClosedForm
from ..injected_term import InjectedCall, InjectFlatness
from ..loss_graph import is_cross_entropy
from ..row_signs import row_signs
from ..strength import is_strength
from .base import ActsIn, Estimator, Operations
from .perturbation import FeaturePerturbation


class InjectedHead(Estimator):
    """kappa of a head in the backward pass, for cross-entropy with hard labels.

    If lambda is unknown in the forward pass, or the loss is another one, the estimator that acts in the loss is used.
    In a model that FSDP shards or DeepSpeed trains, the loss cannot be differentiated beforehand, so perturbation
    replaces this one.

    Args:
        in_loss: estimator of the head that acts in the loss.
        row_probes: P, the number of row probes; 0 for the exact form.
    """

    acts_in = ActsIn.BACKWARD_PASS
    can_smooth = True

    def __init__(self, in_loss: Estimator, row_probes: int) -> None:
        super().__init__(in_loss.choice)
        self.name = in_loss.name
        self.default_strength = in_loss.default_strength
        self.probes, self.tail_derivatives = in_loss.probes, 0
        self._in_loss, self._row_probes = in_loss, row_probes
        self._is_available, self._is_active, self._is_sharded = True, False, False
        self._strength = 0.0
        self._seeds = Seeds()
        self._center: Tensor | None = None
        self._calls: list[InjectedCall] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not; the last forward pass stays with the original."""
        return {**vars(self), "_calls": []}

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Add the term to the head's output in the next forward pass, if lambda is known.

        Raises:
            ValueError: lambda is negative or not finite, or unknown in a sharded model.
        """
        self.forget()
        self.layer.perturb = None
        if strength is None and self._is_sharded:
            raise ValueError(
                "FSDP or DeepSpeed shards the model, where the term acts in the backward pass: write for example "
                "capture(strength=0.003)."
            )
        if strength is not None and not is_strength(strength):
            raise ValueError(f"strength={quote(strength)}: give a finite lambda of at least 0.")
        self._is_active = self._is_available and strength is not None
        if self._is_active:
            assert strength is not None
            self._strength, self._seeds, self._center = strength, next_seeds(), mean
            self.layer.perturb = self.inject

    def relative_cost(self, operations: Operations) -> float | None:
        """Return the cost of the estimator that acts in the loss."""
        return self._in_loss.relative_cost(operations)

    def forget(self) -> None:
        """Remove the hooks of the last forward pass."""
        for call in self._calls:
            call.remove_hook()
        self._calls = []

    def for_batch(self, batch: Batch) -> Estimator:
        """Return this estimator for one call under cross-entropy, else that in the loss.

        After the first other batch, the estimator in the loss is always used.

        Raises:
            NoClosedForm: the loss is another one, and the model is sharded.
        """
        if not self._is_active:
            return self._in_loss
        calls = batch.pre_activations
        if len(calls) == 1 and is_cross_entropy(batch.loss, calls[0], batch.graph):
            return self
        if self._is_sharded and not batch.graph.is_reached:
            return self  # a batch of another task
        for call in self._calls:
            call.is_canceled = True
        self.forget()
        self._is_available, self._is_active, self.layer.perturb = False, False, None
        if self._is_sharded:
            raise NoClosedForm("it is not softmax cross-entropy with hard labels, as far as its graph shows")
        self._in_loss.tail_derivatives = 2  # its form must be found by a Hessian-vector product
        return self._in_loss

    def for_sharded_model(self) -> Estimator:
        """Return this estimator, which then never differentiates the loss itself."""
        self._is_sharded = True
        return self

    def can_center_layer(self) -> bool:
        """Return True if the estimator that acts in the loss can center."""
        return self._in_loss.can_center_layer()

    def replacement(self, error: NoClosedForm, batch: Batch) -> Estimator:
        """Return the replacement of the estimator that acts in the loss; perturbation in a sharded model."""
        if not self._is_sharded:
            return self._in_loss.replacement(error, batch)
        unsmoothed = " without smoothing" if self.smoothing else ""
        warnings.warn(
            f"FSDP or DeepSpeed trains the model, so the loss at '{self.layer.name}' cannot be differentiated twice, "
            f"and {error}. "
            f'Perturbing the features{unsmoothed} instead. Set estimator="{FeaturePerturbation.name}" to choose it '
            "from the start.",
            stacklevel=4,
        )
        return FeaturePerturbation(dataclasses.replace(self.choice, smoothing=0.0)).for_sharded_model()

    def read_checks(self) -> None:
        """Read the checks of the estimator that acts in the loss."""
        self._in_loss.read_checks()

    def inject(self, features: Tensor, output: Tensor, linear_map: LinearMap) -> Tensor:
        """Return the head's output with the term added."""
        features, logits, weight = linear_map.feature_rows(features), linear_map.rows(output), linear_map.weight
        features = features if self._center is None else features - self._center
        device, in_features = logits.device, features.shape[-1]
        strength = torch.full((), self._strength, dtype=wide(logits.dtype), device=device, requires_grad=True)
        signs = row_signs(self._row_probes, in_features, device, self._seeds)
        call = InjectedCall(strength)
        self._calls.append(call)
        if weight.is_leaf and weight.requires_grad:
            call.weight_hook = weight.register_hook(call.add_to_weight_gradient)
        injected_logits = InjectFlatness.apply(
            logits, features, weight, strength, signs, self.weights_only, call, self.smoothing
        )
        return linear_map.outputs(injected_logits)

    def __call__(self, batch: Batch) -> Tensor:
        """Return zero, which the backward pass replaces by kappa in the units of the loss."""
        kappa, scale = batch.loss.new_zeros(()), batch.loss.new_ones(())

        def remember_scale(gradient: Tensor) -> None:  # of gradient accumulation, of mixed precision
            scale.copy_(gradient.detach())

        def fill_kappa(gradient: Tensor) -> None:  # again in a second backward pass, with the same value
            kappa.copy_(gradient.detach().to(kappa.device) / scale)

        batch.loss.register_hook(remember_scale)
        for call in self._calls:
            call.strength.register_hook(fill_kappa)
        return kappa

    def gradient_squares(self, loss: Tensor, kappa: Tensor, reference: Tensor) -> Tensor | None:
        """Return zeros, which the backward pass replaces by the squares.

        They are ``||d kappa||^2`` and ``||d loss||^2`` by the logits.
        """
        if not self._is_active:
            return self._in_loss.gradient_squares(loss, kappa, reference)
        if self.weights_only:
            return None
        (call,) = self._calls
        call.squares = kappa.new_zeros(2)
        return call.squares
