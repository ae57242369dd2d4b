"""The closed form of kappa for the classification head."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ...calculus.derivatives import range_scale
from ...calculus.saturation import first_derivatives
from ...layer.feature_layer import FeatureLayer
from ...layer.finding import is_below_head, unwrap
from ..batch import Batch
from ..class_distances import flatness_from_distances, is_worth_distances
from ..coupling import calls_are_nested
from ..form_finder import FormFinder
from ..head_loss import HeadLoss, NoClosedForm, checked_curvature, elementwise_flatness, item_weights
from ..log_probabilities import find_log_probabilities, weights_of
from ..loss_derivatives import tolerance_of
from ..row_signs import row_signs
from ..smoothing import UndefinedSmoothing, smoothed_sigmoid_curvature
from ..softmax_head import softmax_flatness, unit_flatness
from ..vocabulary import is_large
from .base import Choice, Estimator, Operations
from .hessian import HessianProbes
from .injected_head import InjectedHead

# Cost of a large and of a small head, in forward passes of the head. The loss of a small head is differentiated twice.
# Fitted to the head of SmolLM2-135M on a CPU (recipes/benchmarks/scaling.py, rows `causal`).
LARGE_HEAD_FACTOR = 3.0
_SMALL_HEAD_FACTOR = 4.0


class ClosedForm(Estimator):
    """Exact, for heads under softmax cross-entropy and other common losses.

    The others are sums over outputs: sigmoid cross-entropy, squared error, Huber and Poisson losses, for example.

    The form of the loss is recognized at the first batches, at every hundredth and where its graph is new. Every step
    checks it.
    """

    name = "closed_form"
    default_strength = 0.003
    only_at_head = True
    can_smooth = True
    tail_derivatives = 2
    row_probes = 0

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self._refuse_hidden_layer()
        if self._is_large():
            self.tail_derivatives = 1
        self._form_finder = FormFinder(self.smoothing, self.layer.name)
        self._minus_one: Tensor | None = None  # kept, because to make it is one more kernel in every step

    def _refuse_hidden_layer(self) -> None:
        """Refuse a layer that certainly is not the head. The first batch decides about the others."""
        head = self.choice.head
        if head is None or not is_below_head(unwrap(self.choice.model), self.layer.module, head.module):
            return
        raise ValueError(
            f"estimator=\"{self.name}\" is for the head '{head.name}', but '{self.layer.name}' lies below it: use "
            '"gauss_newton", "hessian" or "perturbation", or layer="head".'
        )

    @classmethod
    def make(cls, choice: Choice) -> Estimator:
        """Return an estimator; a large head gets one that can act in the backward pass."""
        in_loss = cls(choice)
        return InjectedHead(in_loss, in_loss.row_probes) if in_loss._is_large() else in_loss

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return True for heads that are not large."""
        return head is layer and not is_large(layer.out_features)

    def relative_cost(self, operations: Operations) -> float:
        """Return the expected extra time of a step."""
        factor = LARGE_HEAD_FACTOR if is_large(operations.out_features) else _SMALL_HEAD_FACTOR
        return factor * operations.layer / (3 * operations.model)

    def __call__(self, batch: Batch) -> Tensor:
        """Return kappa of the batch, in the graph.

        Raises:
            NoClosedForm: the loss has no closed form.
        """
        kappa = self._kappa_of_log_probabilities(batch)
        if kappa is not None:
            return kappa
        if batch.linear_map.groups > 1:
            raise NoClosedForm("the head is a grouped convolution")
        calls = batch.pre_activations
        try:
            form = self._form_finder(batch, calls)
        except UndefinedSmoothing:
            if self.choice.must_smooth:
                raise
            self.smoothing, self._form_finder = 0.0, FormFinder(0.0, self.layer.name)
            form = self._form_finder(batch, calls)
        kappa, checks = self._kappa(batch, form)
        if self._form_finder.is_off(checks):
            other_form = self._form_finder.look(batch, calls)
            return kappa if other_form is None else self._kappa(batch, other_form)[0]
        return kappa

    def read_checks(self) -> None:
        """Look at the loss of the next batch again if its form has changed."""
        self._form_finder.read()

    def replacement(self, error: NoClosedForm, batch: Batch) -> Estimator:
        """Return Hessian probes, with a warning.

        Raises:
            ValueError: the layer is not the head, or it was chosen automatically and may not be the head.
        """
        choice = self.choice
        _refuse_without_closed_form(error, batch, self.layer, choice.head, self.name, choice.is_head_by_default)
        unsmoothed = " without smoothing" if self.smoothing else ""
        warnings.warn(
            f"The closed form does not hold for this loss at '{self.layer.name}': {error}. Using Hessian probes"
            f'{unsmoothed} instead. Set estimator="{HessianProbes.name}" to choose them from the start.',
            stacklevel=4,
        )
        return HessianProbes(self._choice_of_replacement())

    def for_sharded_model(self) -> Estimator:
        """Return the estimator that acts in the backward pass, whatever the size of the head."""
        if not self.choice.at_head or self.layer.linear_map.groups > 1:
            return super().for_sharded_model()
        return InjectedHead(self, self.row_probes).for_sharded_model()

    def _choice_of_replacement(self) -> Choice:
        return dataclasses.replace(self.choice, smoothing=0.0)

    def _is_large(self) -> bool:
        return is_large(self.layer.out_features) and self.layer.linear_map.groups == 1

    def _kappa_of_log_probabilities(self, batch: Batch) -> Tensor | None:
        """Return kappa of a loss that the graph proves to be linear in log-probabilities, or None.

        Nothing needs to be looked at again, and nothing is differentiated twice.
        """
        if len(batch.pre_activations) != 1 or batch.linear_map.groups > 1:
            return None
        # Of a large head, a second tensor of the size of the logits is worth it only where other ways underflow.
        if self._is_large() and batch.pre_activations[0].dtype != torch.float16:
            return None
        (phi,), (z,), smoothing = batch.perturbed_features, batch.pre_activations, self.smoothing
        log_p = find_log_probabilities(batch.loss, z)
        if log_p is None:
            return None
        loss, minus_one = batch.loss, self._minus_one
        if minus_one is None or minus_one.device != loss.device or minus_one.dtype != loss.dtype:
            self._minus_one = minus_one = torch.full_like(loss, -1.0)
        c = weights_of(loss, log_p, minus_one).to(z.device)  # the loss may be on another device
        w, phi = batch.weight, batch.linear_map.feature_rows(phi)
        if self.row_probes == 0 and is_worth_distances(z.shape[-1], len(c), z.device):
            if batch.weights_only:
                phi, z = phi.detach(), z.detach()
            return flatness_from_distances(phi, z, w, c, log_p.values.to(z.device), smoothing)
        signs = row_signs(self.row_probes, phi.shape[-1], phi.device, batch.seeds)
        return softmax_flatness(phi, z, w, c, weights_only=batch.weights_only, signs=signs, smoothing=smoothing)

    def _kappa(self, batch: Batch, form: HeadLoss) -> tuple[Tensor, list[Tensor]]:
        """Return kappa, and for every call whether the loss has another form."""
        phis = [batch.linear_map.feature_rows(phi) for phi in batch.perturbed_features]
        calls = zip(phis, batch.pre_activations, strict=True)
        kappas, checks = zip(*(self._kappa_of_call(batch, phi, z, form) for phi, z in calls), strict=True)
        kappa = torch.stack(kappas).sum() if len(kappas) > 1 else kappas[0]
        return kappa, [*checks]

    def _kappa_of_call(self, batch: Batch, phi: Tensor, z: Tensor, form: HeadLoss) -> tuple[Tensor, Tensor]:
        kappa, is_off = self._unchecked_kappa(batch, phi, z, form)
        # A CPU looks at the loss again. Elsewhere no term is better than a wrong one.
        return (kappa if z.device.type == "cpu" else kappa.masked_fill(is_off, 0.0)), is_off

    def _unchecked_kappa(self, batch: Batch, phi: Tensor, z: Tensor, form: HeadLoss) -> tuple[Tensor, Tensor]:
        number = self._form_finder.batches
        if form.kind == "elementwise":
            scale = range_scale(batch.loss, [z])
            (first,) = first_derivatives(batch.loss, [z], scale)
            curvature, is_off = checked_curvature(first, z, number, tolerance_of(batch.loss, z))
            return elementwise_flatness(phi, batch.weight, curvature, weights_only=batch.weights_only) / scale, is_off
        c, is_off = item_weights(batch, z, form, number)
        if form.kind == "sigmoid":
            curvature = smoothed_sigmoid_curvature(z, c, self.smoothing)
            return elementwise_flatness(phi, batch.weight, curvature, weights_only=batch.weights_only), is_off
        c = c.flatten()
        signs = row_signs(self.row_probes, phi.shape[-1], phi.device, batch.seeds)
        kappa = softmax_flatness(
            phi,
            z,
            batch.weight,
            c.detach(),
            weights_only=batch.weights_only,
            signs=signs,
            smoothing=self.smoothing,
        )
        if c.requires_grad:  # kappa is linear in c
            kappa = kappa + (c - c.detach()) @ unit_flatness(phi, z, batch.weight, signs, self.smoothing)
        return kappa, is_off


def _refuse_without_closed_form(
    error: Exception,
    batch: Batch,
    layer: FeatureLayer,
    head: FeatureLayer | None,
    estimator: str,
    is_head_by_default: bool,
) -> None:
    """Refuse a loss without a closed form, unless Hessian probes can replace it.

    Args:
        error: why there is no closed form.
        batch: the batch after its forward pass.
        layer: the feature layer.
        head: the layer that computes the logits, if it is known.
        estimator: name of the estimator.
        is_head_by_default: whether the user named no layer.

    Raises:
        ValueError: names the layer and what to do.
    """
    if head is not layer:
        raise ValueError(
            f"layer '{layer.name}' has no closed form: {error}. estimator=\"{estimator}\" is for "
            f'the layer into the logits; use "gauss_newton", "hessian" or "perturbation".'
        ) from error
    if is_head_by_default and batch.graph.multiplies_by_parameters(_last_outputs(batch)):
        raise ValueError(
            f"no layer into the logits was found: '{layer.name}' is the last layer, but other parts of the model "
            "multiply its output (a contrastive loss does). Name the layer to flatten: "
            f'layer="{layer.name}" is possible, and `hf-fam layers MODEL` lists the others.'
        ) from error


def _last_outputs(batch: Batch) -> Sequence[Tensor]:
    """Return the outputs of the calls whose output no later call uses."""
    nested = calls_are_nested(batch.features, batch.pre_activations)
    return batch.pre_activations[-1:] if nested else batch.pre_activations
