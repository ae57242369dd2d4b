"""How exactly B, D and the gradient are known: rounding, and the distance to the critical point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .activation import Slopes, activation_of, largest_slopes
from .hidden_layer import HiddenLayer
from .objective import Objective, move
from .rounding import DRAWS, SAFETY, UNIT, UNITS, perturbed_outputs
from .smallest_curvature import Curvature
from .split_curvature import SplitCurvature, split_curvature


@dataclass(frozen=True)
class ErrorBounds:
    """Sizes below which a number is no evidence, as spectral norms.

    Attributes:
        b: of B, by rounding.
        d: of D without its part along v, by rounding.
        gradient: of the gradient, by rounding.
        shift_b: change of B on the way to the critical point, one Newton step away.
        shift_d: change of D on that way.
        slopes: the largest derivatives of the activation.
    """

    b: float
    d: float
    gradient: float
    slopes: Slopes
    shift_b: float = 0.0
    shift_d: float = 0.0


def rounding_bounds(
    model: nn.Module, objective: Objective, hidden: HiddenLayer, neuron: int, curvature: SplitCurvature
) -> ErrorBounds:
    """Return what rounding can do to B, D and the gradient.

    The outputs of all layers are moved by rounding, see `perturbed_outputs`. Formulas for derivatives of activations
    can cancel, as in ``1 - tanh(n)^2`` for large n, so they count with one unit of rounding of their largest value.

    Args:
        model: in float64.
        objective: the loss over the data.
        hidden: the layer.
        neuron: its index.
        curvature: B, D and the gradient at the point.
    """
    slopes = largest_slopes(activation_of(model, objective, hidden), curvature.gradient)
    b = d = gradient = 0.0
    for seed in range(DRAWS):
        with perturbed_outputs(model, seed):
            moved = split_curvature(model, objective, hidden, neuron)
        b = max(b, _norm(moved.B - curvature.B))
        d = max(d, _norm(moved.D_orthogonal - curvature.D_orthogonal))
        gradient = max(gradient, float((moved.gradient - curvature.gradient).norm()))
    return ErrorBounds(
        b=SAFETY * (b / UNITS + UNIT * slopes.second * curvature.terms_b),
        d=SAFETY * (d / UNITS + UNIT * slopes.first * curvature.terms_d),
        gradient=SAFETY * gradient / UNITS,
        slopes=slopes,
    )


def with_shift(
    bounds: ErrorBounds,
    model: nn.Module,
    objective: Objective,
    hidden: HiddenLayer,
    neuron: int,
    curvature: SplitCurvature,
    hessian: Curvature,
) -> ErrorBounds:
    """Add how far B and D are from those of the critical point: twice their change by a Newton step."""
    move(model, hessian.step)
    there = split_curvature(model, objective, hidden, neuron)
    move(model, -hessian.step)
    return ErrorBounds(
        b=bounds.b,
        d=bounds.d,
        gradient=bounds.gradient,
        slopes=bounds.slopes,
        shift_b=2 * _norm(there.B - curvature.B),
        shift_d=2 * _norm(there.D_orthogonal - curvature.D_orthogonal),
    )


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))
