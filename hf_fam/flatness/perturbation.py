"""kappa by perturbing the features: first order only, in the one forward pass, for any layer and kernel.

With A of independent zero-mean entries of variance 1/m,

    E_A[ L(phi + delta A phi) ] = L + delta^2 / (2m) kappa + higher orders,

so adding ``delta W A phi`` to z trains on ``L + lambda kappa`` with ``lambda = delta^2 / (2m)`` in expectation
(noise injection, Bishop 1995; feature robustness, Petzka et al. 2021). The loss is then the perturbed one.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..calculus.derivatives import SecondDerivativeError, inner
from ..layer.linear_map import LinearMap
from .batch import Batch, Seeds
from .coupling import Coupling, CouplingFinder
from .directions import draw


class FeaturePerturbation:
    """The loss under random feature perturbations; the coupling of rows is found at the first batch.

    Attributes:
        strength: lambda of the next forward pass; 0 leaves it untouched.
        seeds: where the signs of the next forward pass come from.
        center: what is taken off the features of the next forward pass, shape ``(m,)``, or None.
    """

    def __init__(self) -> None:
        self.strength = 0.0
        self.seeds = Seeds()
        self.center: Tensor | None = None
        self.coupling = CouplingFinder()
        self._coupling = Coupling.BATCH
        self._look = True
        self._added: list[tuple[Tensor, Tensor]] = []

    def assume_coupled(self) -> None:
        """One matrix for the whole batch from now on, where the loss must not be differentiated to find out."""
        self.coupling.found, self._look = Coupling.BATCH, False

    def begin(self, strength: float, seeds: Seeds) -> None:
        """Set strength and seeds of the next forward pass."""
        self.strength, self.seeds, self._added = strength, seeds, []
        # One matrix for the whole batch is right whatever is coupled, so it serves until the coupling is known. What is
        # found out after the forward pass must not change what is computed again in the backward pass.
        self._coupling = self.coupling.found or Coupling.BATCH

    def perturb(self, features: Tensor, output: Tensor, linear_map: LinearMap) -> Tensor:
        """z + sqrt(2 lambda) W A phi, A with entries of unit variance."""
        if self.strength == 0:
            return output
        if self.center is not None:
            features = features - self.center
        (u,) = draw([features], linear_map, self._coupling, self.seeds)
        added = linear_map.outputs(math.sqrt(2 * self.strength) * u).to(output.dtype)
        perturbed = output + added
        self._added.append((perturbed, added.detach()))
        return perturbed

    def __call__(self, batch: Batch) -> Tensor:
        """Zero, as the loss contains the term; the backward pass fills in an estimate of kappa.

        From ``E[g(z + v) . v] = E[v^T H v] = 2 lambda kappa`` to leading order, g the gradient of the perturbed loss.
        """
        if self._look:
            try:
                self.coupling(batch)
            except SecondDerivativeError:
                self.coupling.found = Coupling.BATCH
        kappa = batch.loss.new_zeros(())
        scale = batch.loss.new_ones(())
        added, self._added = self._added, []
        if self.strength == 0 or not batch.loss.requires_grad:
            return kappa

        def remember_scale(gradient: Tensor) -> None:  # of gradient accumulation, of mixed precision
            scale.copy_(gradient.detach())

        batch.loss.register_hook(remember_scale)
        for perturbed, v in added:

            def add(gradient: Tensor, v: Tensor = v, strength: float = self.strength) -> None:
                kappa.add_(inner(gradient.detach(), v) / (2 * strength * scale))

            perturbed.register_hook(add)
        return kappa


def delta_of(strength: float, in_features: int) -> float:
    """Relative size of the feature perturbation that lambda stands for, ``sqrt(2 m lambda)``.

    Args:
        strength: lambda, not negative.
        in_features: m.

    Examples:
        >>> delta_of(0.005, 400)
        2.0
    """
    return math.sqrt(2 * in_features * strength)


def lambda_of(delta: float, in_features: int) -> float:
    """The lambda that perturbations of relative size delta stand for, ``delta^2 / (2 m)``.

    Args:
        delta: size of ``delta A phi`` relative to phi.
        in_features: m.

    Examples:
        >>> lambda_of(2.0, 400)
        0.005
    """
    return delta**2 / (2 * in_features)
