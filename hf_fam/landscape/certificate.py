"""The certificate: whether splitting a neuron makes a local minimum or a saddle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .hidden_layer import HiddenLayer, check_neuron, find_hidden_layer
from .objective import Loss, Objective, float64_copy, trainable
from .smallest_curvature import Curvature, extreme_curvature
from .split_curvature import SplitCurvature, split_curvature

MINIMUM, SADDLE, UNDECIDED = "minimum", "saddle", "undecided"

# Relative sizes, free of the units of loss and weights. Float64 rounds at 1e-16, and sums over data lose some digits.
GRADIENT_TOLERANCE = 1e-5
ZERO = 1e-10
NOT_ZERO = 1e-8


@dataclass(frozen=True)
class Verdict:
    """The kind of critical point that a split makes.

    Attributes:
        kind: "minimum": a (degenerate) local minimum; "saddle": a direction of negative curvature exists;
            "undecided": neither could be shown.
        margin: relative size of the smallest deciding number; for "undecided", of the number that is too small.
        reason: one sentence.
    """

    kind: str
    margin: float
    reason: str


@dataclass(frozen=True, eq=False)
class SplitCertificate:
    """The certificate for splitting one neuron at one point.

    Attributes:
        layer: name of the layer that makes the neuron.
        next_layer: name of the layer that reads it.
        neuron: its index.
        ratio: the lambda of `verdict`. `judge` returns the verdict for any other.
        loss: the loss at the point.
        relative_gradient: ``||grad L|| ||theta|| / |L|``, the relative change of the loss for a relative change of the
            parameters; 0 at a critical point.
        curvature: B, D and their scales.
        eigenvalues_b: eigenvalues of B, ascending.
        singular_values_d: singular values of D, descending.
        hessian: the extreme eigenvalues of the Hessian before the split; None if no verdict depends on them.
        verdict: the verdict for ``ratio``.
    """

    layer: str
    next_layer: str
    neuron: int
    ratio: float
    loss: float
    relative_gradient: float
    curvature: SplitCurvature = field(repr=False)
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
        return _Judge(self.curvature, self.relative_gradient, self.hessian).verdict(ratio)


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
) -> SplitCertificate:
    """Certify whether splitting a neuron makes a local minimum or a saddle.

    The third verdict is that neither can be shown.

    For a critical point theta* of the loss, the Hessian after the split is congruent to

        H(theta*) (+) [[ratio (1 - ratio) B, D], [D^T, 0]]

        B = sum_a (delta_a . v) sigma''(n_a) h_a h_a^T        D = sum_a sigma'(n_a) h_a delta_a^T

    with h the layer's inputs (and a 1 if it has a bias), n the neuron's pre-activation, delta the derivative of the
    loss by the outputs of the next layer, v the neuron's outgoing weights, and the sum over the data a. If D != 0,
    every split makes a saddle. If D = 0 and H(theta*) > 0, the sign of B decides. The idea is from Petzka and
    Sminchisescu 2021 (arXiv 1812.06486); this form of it was derived for hf_fam.

    Everything is computed on a copy in float64 and evaluation mode; the model stays as it is. Frozen parameters are
    constants. A verdict needs a more precise critical point than training usually reaches: call `find_critical_point`
    first.

    Args:
        model: the model *before* the split.
        loss: called with outputs and targets (with outputs and the batch, if batches are dicts); None: the model's own.
        data: batches (pairs or dicts) that can be iterated more than once, or one batch.
        layer: the linear layer that makes the neuron: dotted name, or module.
        neuron: its index.
        ratio: lambda, the share of the outgoing weights that stays with the old neuron.
        next_layer: the linear layer that reads the neuron, if it cannot be found automatically.
        reduction: whether the losses of batches are averaged ("mean", weighted by their items) or summed ("sum");
            None: what ``loss.reduction`` says, else "mean".
        dense_limit: up to this many trainable parameters, the Hessian before the split is computed in full. With more,
            Lanczos iteration finds its extreme eigenvalues, which needs scipy.

    Raises:
        ValueError: the layer belongs to a gated MLP, is frozen, or does not exist; there is more than an elementwise
            activation between the layers; or the data cannot be used.
        TypeError: the layer is not linear.

    Examples:
        >>> from hf_fam.landscape import HalfSquaredError, find_critical_point
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> model = find_critical_point(model, HalfSquaredError(), (x, y))
        >>> certificate = split_certificate(model, HalfSquaredError(), (x, y), "0", neuron=0)
        >>> round(certificate.B.item(), 6), certificate.verdict.kind, certificate.judge(1.5).kind
        (0.951303, 'minimum', 'saddle')
    """
    source = find_hidden_layer(model, layer, next_layer)
    neuron = check_usable(source, neuron)
    copied = float64_copy(model)
    hidden = find_hidden_layer(copied, source.names[0], source.next_name)
    objective = Objective(loss, data, reduction)
    curvature = split_curvature(copied, objective, hidden, neuron)
    relative = _relative_gradient(copied, curvature)
    judge = _Judge(curvature, relative, None)
    hessian = None
    if judge.needs_hessian:
        hessian = extreme_curvature(copied, objective, curvature.gradient, dense_limit)
        judge = _Judge(curvature, relative, hessian)
    return SplitCertificate(
        layer=source.names[0],
        next_layer=source.next_name,
        neuron=neuron,
        ratio=ratio,
        loss=curvature.loss,
        relative_gradient=relative,
        curvature=curvature,
        eigenvalues_b=torch.linalg.eigvalsh(curvature.B),
        singular_values_d=torch.linalg.svdvals(curvature.D),
        hessian=hessian,
        verdict=judge.verdict(ratio),
    )


class _Judge:
    """Decides from the numbers.

    Margins are relative to the sums of absolute values of the terms of B and D.
    """

    def __init__(self, curvature: SplitCurvature, relative_gradient: float, hessian: Curvature | None) -> None:
        self.curvature, self.gradient, self.hessian = curvature, relative_gradient, hessian
        self.d = _relative(float(torch.linalg.matrix_norm(curvature.D_orthogonal, 2)), curvature.scale_d)
        eigenvalues = torch.linalg.eigvalsh(curvature.B)
        self.lowest = _relative(float(eigenvalues[0]), curvature.scale_b)
        self.highest = _relative(float(eigenvalues[-1]), curvature.scale_b)
        self.d_vanishes = self.d <= ZERO

    @property
    def is_critical(self) -> bool:
        return self.gradient <= GRADIENT_TOLERANCE

    @property
    def floor(self) -> float:
        """Return the size of B and D that the distance to the critical point explains."""
        return max(NOT_ZERO, self.gradient)

    @property
    def needs_hessian(self) -> bool:
        """Return True if some ratio could give a minimum."""
        return self.is_critical and self.d_vanishes and (self.lowest > self.floor or self.highest < -self.floor)

    def verdict(self, ratio: float) -> Verdict:
        if not math.isfinite(ratio):
            raise ValueError(f"ratio={ratio!r}: give a finite number.")
        for rule in (self._not_critical, self._by_d, self._flat_activation, self._by_b):
            decision = rule(ratio)
            if decision is not None:
                return decision
        return self._by_hessian()

    def _not_critical(self, ratio: float) -> Verdict | None:
        if self.is_critical:
            return None
        return Verdict(
            UNDECIDED,
            self.gradient,
            f"not a critical point: the relative gradient is {self.gradient:.1e}, more than {GRADIENT_TOLERANCE:.0e}; "
            "call hf_fam.landscape.find_critical_point first",
        )

    def _by_d(self, ratio: float) -> Verdict | None:
        if self.d_vanishes:
            return None
        if self.d > self.floor:
            return Verdict(SADDLE, self.d, f"D is not zero (relative size {self.d:.1e}): a saddle for every ratio")
        return Verdict(
            UNDECIDED, self.d, f"D (relative size {self.d:.1e}) cannot be distinguished from zero at this precision"
        )

    def _flat_activation(self, ratio: float) -> Verdict | None:
        if self.curvature.max_second_derivative > 0:
            return None
        return Verdict(
            UNDECIDED, 0.0, "the activation is piecewise linear here (sigma'' = 0), so B = 0 decides nothing"
        )

    def _by_b(self, ratio: float) -> Verdict | None:
        """Decide all cases except the one that depends on H(theta*)."""
        if ratio in (0.0, 1.0):
            return Verdict(UNDECIDED, 0.0, f"at ratio {ratio:g} the curvature of the split vanishes: a boundary case")
        is_inside = 0 < ratio < 1
        low, high = (self.lowest, self.highest) if is_inside else (-self.highest, -self.lowest)
        if low < -self.floor:
            definite = "indefinite" if high > self.floor else ("negative" if is_inside else "positive")
            side = "inside" if is_inside else "outside"
            return Verdict(SADDLE, -low, f"D = 0, B is {definite} and the ratio lies {side} (0, 1)")
        if low <= self.floor:
            return Verdict(UNDECIDED, abs(low), f"B has an eigenvalue that is zero to {self.floor:.0e} of its scale")
        return None

    def _by_hessian(self) -> Verdict:
        assert self.hessian is not None  # needs_hessian holds in this case
        hessian = self.hessian
        if hessian.failure:
            return Verdict(UNDECIDED, 0.0, hessian.failure)
        margin = min(hessian.relative, max(self.lowest, -self.highest))
        # Near a critical point, B and H are those of the critical point up to about the distance.
        floor = max(NOT_ZERO, 10 * hessian.newton_distance)
        if hessian.relative < -self.floor:
            return Verdict(
                SADDLE, -hessian.relative, "the point was a saddle before the split: H has a negative eigenvalue"
            )
        if not margin > floor:
            return Verdict(
                UNDECIDED,
                margin,
                f"the smallest relative eigenvalue of H and B is {margin:.1e}, too small at this distance from the "
                f"critical point ({hessian.newton_distance:.1e} of the parameters' length)",
            )
        sign = "B > 0" if self.lowest > 0 else "B < 0"
        return Verdict(MINIMUM, margin, f"D = 0, {sign} and H(theta*) > 0 ({hessian.method})")


def _relative(value: float, scale: float) -> float:
    return value / scale if scale > 0 else 0.0


def _relative_gradient(model: nn.Module, curvature: SplitCurvature) -> float:
    length = math.sqrt(sum(float(p.detach().square().sum()) for p in trainable(model)))
    size = float(curvature.gradient.norm()) * length
    return size / abs(curvature.loss) if curvature.loss else (math.inf if size else 0.0)


def check_usable(hidden: HiddenLayer, neuron: int) -> int:
    """Refuse layers for which the formula does not hold; return the neuron as an int.

    Raises:
        ValueError: the layer belongs to a gated MLP or is frozen, or there is no such neuron.
    """
    if hidden.is_gated:
        raise ValueError(
            f"'{hidden.names[0]}' belongs to a gated MLP, where a neuron is a product of two factors and the formula "
            "for B and D does not hold: choose another layer. Splitting, merging and widening work there."
        )
    neuron = check_neuron(hidden, neuron)
    for name, module in ((hidden.names[0], hidden.incoming[0]), (hidden.next_name, hidden.outgoing)):
        if not module.weight.requires_grad:
            raise ValueError(
                f"the weight of '{name}' is frozen (requires_grad=False), but the certificate is about training it: "
                "set requires_grad=True."
            )
    return neuron
