"""The certificate: whether splitting a neuron makes a local minimum or a saddle."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.numbers import require_number, require_whole
from .error_bounds import ErrorBounds, rounding_bounds, with_shift
from .halved_neuron import HalvedNeuron
from .hidden_layer import HiddenLayer, check_neuron
from .hidden_layer_search import find_hidden_layer
from .judge import Judge, Verdict
from .objective import Loss, Objective, float64_copy, relative_gradient
from .smallest_curvature import Curvature, extreme_curvature
from .split_curvature import SplitCurvature, split_curvature


@dataclass(frozen=True, eq=False)
class SplitCertificate:
    """The certificate for splitting one neuron at one point.

    Attributes:
        layer: name of the layer that makes the neuron.
        next_layer: name of the layer that reads it.
        neuron: its index.
        ratio: the lambda of `verdict`. `judge` returns the verdict for any other.
        loss: the loss at the point, with the penalty of a weight decay.
        relative_gradient: ``||grad L|| ||theta|| / |L|``, the relative change of the loss for a relative change of the
            parameters; 0 at a critical point.
        curvature: B, D and the gradient.
        errors: what they are known to: rounding, and the distance to the critical point.
        eigenvalues_b: eigenvalues of B, ascending.
        singular_values_d: singular values of D, descending.
        hessian: the extreme eigenvalues of the Hessian before the split; None if the gradient is too large.
        verdict: the verdict for ``ratio``.
    """

    layer: str
    next_layer: str
    neuron: int
    ratio: float
    loss: float
    relative_gradient: float
    curvature: SplitCurvature = field(repr=False)
    errors: ErrorBounds = field(repr=False)
    eigenvalues_b: Tensor
    singular_values_d: Tensor
    hessian: Curvature | None
    verdict: Verdict

    @property
    def B(self) -> Tensor:
        """Return ``sum_a (delta_a . v) sigma''(n_a) h_a h_a^T``.

        The last row belongs to the bias, if there is one.
        """
        return self.curvature.B

    @property
    def D(self) -> Tensor:
        """Return ``sum_a sigma'(n_a) h_a delta_a^T``."""
        return self.curvature.D

    def judge(self, ratio: float) -> Verdict:
        """Return the verdict for another ratio, from the same numbers."""
        return Judge(self.curvature, self.relative_gradient, self.errors, self.hessian).verdict(ratio)


@torch.enable_grad()
def split_certificate(
    model: nn.Module,
    loss: Loss | None,
    data: Any,
    layer: str | nn.Module,
    neuron: int,
    ratio: float = 0.5,
    *,
    next_layer: str | nn.Module | None = None,
    reduction: str | None = None,
    dense_limit: int = 1000,
    weight_decay: float = 0.0,
) -> SplitCertificate:
    """Certify whether splitting a neuron makes a local minimum or a saddle.

    Other verdicts are that the curvature is zero within rounding, or that nothing can be shown.

    For a critical point theta* of the loss, the Hessian after the split is congruent to

        H(theta*) (+) [[ratio (1 - ratio) B, D], [D^T, 0]]

        B = sum_a (delta_a . v) sigma''(n_a) h_a h_a^T        D = sum_a sigma'(n_a) h_a delta_a^T

    Here h are the layer's inputs, with a 1 if it has a bias. n is the neuron's pre-activation, and v are its outgoing
    weights. delta is the derivative of the loss by the outputs of the next layer. The sums run over the data a. In a
    convolution, a is a position and h its patch. If D != 0, every split makes a saddle. If D = 0 and H(theta*) > 0, the
    sign of B decides. The idea is from Petzka and Sminchisescu 2021 (arXiv 1812.06486); this form of it was derived for
    hf_fam.

    A number counts as different from zero if it exceeds its error bound. The bound is the effect of rounding and of the
    distance to the critical point, one Newton step.

    Everything is computed on a copy in float64 and evaluation mode; the model stays as it is. Frozen parameters are
    constants. A verdict needs a more precise critical point than training usually reaches: give the model of a
    converged `find_critical_point`.

    Args:
        model: the model *before* the split.
        loss: called with outputs and targets (with outputs and the batch, if batches are dicts); None: the model's own.
        data: batches (pairs or dicts) that can be iterated more than once, or one batch.
        layer: the linear layer or convolution that makes the neuron: dotted name, or module.
        neuron: its index.
        ratio: lambda, the share of the outgoing weights that stays with the old neuron.
        next_layer: the layer that reads the neuron, if it cannot be found automatically.
        reduction: whether the losses of batches are averaged ("mean", weighted by their items) or summed ("sum");
            None: what ``loss.reduction`` says, else "mean".
        dense_limit: up to this many trainable parameters, the Hessian before the split is computed in full. With more,
            Lanczos iteration finds its extreme eigenvalues, which needs scipy.
        weight_decay: alpha of a penalty ``alpha / 2 ||theta||^2`` on the network *after* the split. With it, only the
            ratio 1/2 makes a critical point; call `find_critical_point` with the same ``weight_decay`` and with
            ``split=(layer, neuron)``. The lower blocks become ``B / 4 + alpha / 2`` and ``2 alpha``.

    Raises:
        ValueError: the layer belongs to a gated MLP, is frozen, or does not exist; there is more than an elementwise
            activation between the layers; or the data or the weight decay cannot be used.
        TypeError: the layer is neither linear nor a convolution without groups.

    Examples:
        >>> from hf_fam.landscape import HalfSquaredError, find_critical_point
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> model = find_critical_point(model, HalfSquaredError(), (x, y)).model
        >>> certificate = split_certificate(model, HalfSquaredError(), (x, y), "0", neuron=0)
        >>> round(certificate.B.item(), 6), certificate.verdict.kind, certificate.judge(1.5).kind
        (0.951303, 'minimum', 'saddle')
    """
    ratio, dense_limit = require_number("ratio", ratio), require_whole("dense_limit", dense_limit, 0)
    source = find_hidden_layer(model, layer, next_layer)
    neuron = check_usable(source, neuron)
    copied = float64_copy(model)
    hidden = find_hidden_layer(copied, source.names[0], source.next_name)
    objective = Objective(loss, data, reduction, weight_decay)
    objective.halves = HalvedNeuron.of(hidden, neuron)
    curvature = split_curvature(copied, objective, hidden, neuron)
    relative = relative_gradient(copied, curvature.loss, curvature.gradient)
    errors = rounding_bounds(copied, objective, hidden, neuron, curvature)
    hessian = None
    if Judge(curvature, relative, errors, None).may_be_critical:
        hessian = extreme_curvature(copied, objective, curvature.gradient, dense_limit)
        if not hessian.failure:
            errors = with_shift(errors, copied, objective, hidden, neuron, curvature, hessian)
    return SplitCertificate(
        layer=source.names[0],
        next_layer=source.next_name,
        neuron=neuron,
        ratio=ratio,
        loss=curvature.loss,
        relative_gradient=relative,
        curvature=curvature,
        errors=errors,
        eigenvalues_b=torch.linalg.eigvalsh(curvature.B),
        singular_values_d=torch.linalg.svdvals(curvature.D),
        hessian=hessian,
        verdict=Judge(curvature, relative, errors, hessian).verdict(ratio),
    )


def check_usable(hidden: HiddenLayer, neuron: int) -> int:
    """Refuse layers for which the formula does not hold; return the neuron as an int.

    Raises:
        ValueError: the layer belongs to a gated MLP or is frozen, or there is no such neuron.
    """
    if hidden.is_gated:
        raise ValueError(
            f"'{hidden.names[0]}' belongs to a gated MLP, where a neuron is a product of two factors. The formula for "
            "B and D does not hold there: choose another layer. Splitting, merging and widening work there."
        )
    if not hidden.is_elementwise:
        raise ValueError(
            f"a normalization or pooling lies between '{hidden.names[0]}' and '{hidden.next_name}', so the formula for "
            "B and D does not hold: choose another layer. Splitting, merging and widening work there."
        )
    neuron = check_neuron(hidden, neuron)
    for name, module in ((hidden.names[0], hidden.incoming[0]), (hidden.next_name, hidden.outgoing)):
        if not module.weight.requires_grad:
            raise ValueError(
                f"the weight of '{name}' is frozen (requires_grad=False), but the certificate is about training it: "
                "set requires_grad=True."
            )
    return neuron
