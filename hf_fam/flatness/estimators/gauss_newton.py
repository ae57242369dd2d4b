"""Gauss-Newton probes: a non-negative kappa of a hidden layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...calculus.autograd_graph import is_product
from ...calculus.derivatives import quadratic_form, range_scale, second_derivatives, vector_products
from ...calculus.saturation import first_derivatives
from ...layer.feature_layer import FeatureLayer
from ..batch import Batch
from ..coupling import calls_are_nested
from ..form_finder import FormFinder
from ..head_loss import HeadLoss, NoClosedForm, item_weights
from ..log_probabilities import curvature_product, find_log_probabilities, weights_of
from ..smoothing import smoothed_sigmoid_curvature, smoothed_softmax_product
from ..vocabulary import is_large
from .base import Choice
from .random_probes import RandomProbes

# Product of the curvature of the loss by the logits of all calls with a vector.
Curvature = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


class GaussNewtonProbes(RandomProbes):
    """Random probes with the Gauss-Newton matrix, never negative for a convex loss."""

    name = "gauss_newton"
    default_strength = 0.001
    needs_logits = True
    can_smooth = True

    def __init__(self, choice: Choice) -> None:
        if choice.head is None:
            raise ValueError(
                f'estimator="{self.name}" needs the layer into the logits, but none was found: use "hessian".'
            )
        super().__init__(choice)
        self._form_finder = FormFinder(self.smoothing, self.layer.name)

    @classmethod
    def is_default_for(cls, layer: FeatureLayer, head: FeatureLayer | None) -> bool:
        """Return True for the layers below a known head."""
        return head is not None and head is not layer

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch without the logits that the Gauss-Newton matrix needs."""
        assert self.choice.head is not None
        _check_logits(batch, self.layer, self.choice.head)

    def probe(self, batch: Batch, directions: Sequence[Tensor]) -> Tensor:
        """Return the quadratic form for one direction, see `gauss_newton_probe`."""
        return gauss_newton_probe(
            batch.loss,
            batch.pre_activations,
            batch.logits,
            directions,
            weights_only=batch.weights_only,
            curvature=self._smoothed_curvature(batch) if self.smoothing else _proven_curvature(batch),
        )

    def _smoothed_curvature(self, batch: Batch) -> Curvature | None:
        """Return the smoothed curvature of the loss by the logits; None if it is the loss's own."""
        if not self.smoothing:
            return None
        try:
            form = self._form_finder(batch, batch.logits)
            weights = self._checked_weights(batch, form)
        except NoClosedForm as error:
            self.smoothing = 0.0
            warnings.warn(
                f"kappa of '{self.layer.name}' is not smoothed: {error}. Set smoothing=0 (fam_smoothing) to choose "
                "this from the start.",
                stacklevel=6,
            )
            return None
        if weights is None:
            return None
        form, item_weights_of_calls = weights

        def curvature(logits: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
            calls = zip(logits, item_weights_of_calls, vectors, strict=True)
            return [self._product(z, c, v, form) for z, c, v in calls]

        return curvature

    def _checked_weights(self, batch: Batch, form: HeadLoss) -> tuple[HeadLoss, list[Tensor]] | None:
        """Return form and item weights of the loss; None if its curvature is its own, as for a squared error."""
        if form.kind == "elementwise":
            return None
        weights, checks = zip(
            *(item_weights(batch, z, form, self._form_finder.batches) for z in batch.logits), strict=True
        )
        if self._form_finder.is_off(checks):
            form = self._form_finder.look(batch, batch.logits) or form
            if form.kind == "elementwise":
                return None
            weights = tuple(item_weights(batch, z, form)[0] for z in batch.logits)
        elif weights[0].device.type != "cpu":
            weights = tuple(c.masked_fill(is_off, 0.0) for c, is_off in zip(weights, checks, strict=True))
        return form, [*weights]

    def read_checks(self) -> None:
        """Look at the loss of the next batch again if its form has changed."""
        self._form_finder.read()

    def _product(self, logits: Tensor, c: Tensor, vector: Tensor, form: HeadLoss) -> Tensor:
        if form.kind == "softmax":
            return smoothed_softmax_product(logits, c, vector, self.smoothing)
        return smoothed_sigmoid_curvature(logits, c, self.smoothing) * vector


def _proven_curvature(batch: Batch) -> Curvature | None:
    """Return the curvature of a loss that the graph proves to be linear in log-probabilities, else None.

    It is precise in confident rows, too, where torch's second derivative is a difference of equal numbers.
    """
    if len(batch.logits) != 1 or is_large(batch.logits[0].shape[-1]):
        return None
    (z,) = batch.logits
    log_p = find_log_probabilities(batch.loss, z)
    if log_p is None:
        return None
    c = weights_of(batch.loss, log_p).to(z.device).view(z.shape[:-1])
    return lambda logits, vectors: [curvature_product(logits[0], c, vectors[0])]


def _check_logits(batch: Batch, layer: FeatureLayer, head: FeatureLayer) -> None:
    """Refuse a head whose outputs are not the logits of the loss.

    Args:
        batch: the batch after its forward pass.
        layer: the feature layer.
        head: the layer that should compute the logits.

    Raises:
        ValueError: names the head and what to do.
    """
    problem = None
    if not batch.logits:
        problem = "was not called in the forward pass"
    elif calls_are_nested(batch.logits, batch.logits):
        problem = "is called several times, one call feeding the next"
    elif not batch.graph.leads_to(batch.logits):
        problem = "does not lead to the loss"
    elif any(map(is_product, batch.graph.above(batch.logits))):
        problem = "has further layers, or products, above it"
    if problem:
        raise ValueError(
            f"estimator=\"gauss_newton\" takes '{head.name}' for the layer into the logits, but it "
            f'{problem}: use "hessian", or call the layer into the logits "head" or "classifier".'
        )
    if batch.graph.passes_by(batch.logits):
        warnings.warn(
            f"Part of the loss depends on layer '{layer.name}' without passing through '{head.name}', such as the "
            'auxiliary loss of a router or a second head. estimator="gauss_newton" ignores the curvature of that part; '
            'use "hessian" to include it.',
            stacklevel=5,
        )


def gauss_newton_probe(
    loss: Tensor,
    pre_activations: Sequence[Tensor],
    logits: Sequence[Tensor],
    directions: Sequence[Tensor],
    *,
    weights_only: bool = False,
    curvature: Curvature | None = None,
) -> Tensor:
    """Return one probe ``(J u)^T (d2L/dlogits2) (J u)``, J the tail's Jacobian.

    The probe is differentiable to every parameter. Its mean over random directions ``u = W A phi`` is kappa with the
    Gauss-Newton matrix in place of the Hessian. It is never negative if the loss is convex in the logits. It equals
    kappa if the tail is piecewise linear. With several calls of the layer, J is the total derivative. If one call
    feeds another, the probe is that of the Gauss-Newton matrix of W.

    Args:
        loss: L, a scalar in the graph.
        pre_activations: z of every call of the feature layer, shapes ``(..., d)``.
        logits: output of every call of the head, in the graph between z and the loss.
        directions: u for every call of the feature layer, in the graph.
        weights_only: let the gradient reach W alone.
        curvature: product of the curvature by the logits with a vector, in the graph; None for that of the loss.

    Returns:
        A scalar in the units of the loss.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.

    Examples:
        >>> import torch
        >>> z = torch.tensor([[0.5]], requires_grad=True)
        >>> logits = z.tanh()
        >>> u = torch.ones(1, 1)
        >>> probe = gauss_newton_probe((logits**2).sum(), [z], [logits], [u])
        >>> bool(torch.isclose(probe, 2 * (1 - z.tanh() ** 2).squeeze() ** 2))
        True
    """
    u = [v.to(z.dtype) for v, z in zip(directions, pre_activations, strict=True)]
    logit_directions = push_forward(logits, pre_activations, [v.detach() for v in u] if weights_only else u)
    scale: Tensor | float = 1.0
    if curvature is None:
        scale = range_scale(loss, logits)
        product = vector_products(first_derivatives(loss, logits, scale), logits, logit_directions)
    else:
        product = curvature(logits, logit_directions)
    if not weights_only:
        return quadratic_form(logit_directions, product, weights_only=False) / scale
    # J^T (H J u) lies below the tail, so that W acts in u alone.
    cotangents = [p.detach() for p in product]
    pulled_back = torch.autograd.grad(logits, pre_activations, cotangents, retain_graph=True, materialize_grads=True)
    return quadratic_form(directions, pulled_back, weights_only=True) / scale


def push_forward(outputs: Sequence[Tensor], inputs: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
    """Return J u in the graph, J the Jacobian of ``outputs`` by ``inputs``.

    It is the derivative of ``v -> J^T v``, which is linear in v. This needs no second forward pass.
    """
    v = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    with second_derivatives():
        pulled_back = torch.autograd.grad(outputs, inputs, v, create_graph=True, materialize_grads=True)
    return vector_products(pulled_back, v, tangents)
