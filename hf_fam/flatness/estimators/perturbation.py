"""kappa from feature perturbations in the forward pass, with first derivatives only.

With A of independent zero-mean entries of variance 1/m,

    E_A[ L(phi + delta A phi) ] = L + delta^2 / (2m) kappa + higher orders,

so adding ``delta W A phi`` to z trains on ``L + lambda kappa`` in expectation, with ``lambda = delta^2 / (2m)`` (noise
injection, Bishop 1995; feature robustness, Petzka et al. 2021). The loss is then that of the perturbed features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...calculus.derivatives import SecondDerivativeError, inner
from ...inputs.text import quote
from ...layer.linear_map import LinearMap
from ..batch import Batch, Seeds
from ..coupling import Coupling, CouplingFinder
from ..directions import draw
from ..strength import is_strength
from .base import ActsIn, Choice, Estimator


class FeaturePerturbation(Estimator):
    """The loss under random feature perturbations, with first derivatives only.

    Attributes:
        strength: lambda of the next forward pass. 0 means no perturbation.
        coupling_finder: finds which rows share a random matrix.
    """

    name = "perturbation"
    default_strength = 0.003
    acts_in = ActsIn.FORWARD_PASS
    tail_derivatives = 0
    weights_only_possible = False

    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.strength = 0.0
        self.coupling_finder = CouplingFinder()
        self._seeds = Seeds()
        self._center: Tensor | None = None
        self._coupling_in_use = Coupling.BATCH
        self._finds_coupling = True
        self._perturbations: list[tuple[Tensor, Tensor]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not; the last forward pass stays with the original."""
        return {**vars(self), "_perturbations": []}

    def for_sharded_model(self) -> Estimator:
        """Return this estimator, with one matrix for the whole batch: finding the coupling needs derivatives."""
        self.coupling_finder.coupling, self._finds_coupling = Coupling.BATCH, False
        return self

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Perturb the layer's output in the next forward pass.

        Raises:
            ValueError: the strength is missing or negative.
        """
        if strength is None or not is_strength(strength):
            raise ValueError(
                f'strength={quote(strength)}: estimator="{self.name}" acts in the forward pass, so write for example '
                "capture(strength=0.003), with a lambda of at least 0."
            )
        self.strength, self._seeds, self._center, self._perturbations = strength, next_seeds(), mean, []
        # One matrix for the whole batch is unbiased for every coupling, so it is used until the coupling is known. The
        # coupling in use must not change before the backward pass, which may compute the layer again.
        self._coupling_in_use = self.coupling_finder.coupling or Coupling.BATCH
        self.layer.perturb = self.perturb

    def perturb(self, features: Tensor, output: Tensor, linear_map: LinearMap) -> Tensor:
        """Return z + sqrt(2 lambda) W A phi, A with entries of unit variance."""
        if self.strength == 0:
            return output
        if self._center is not None:
            features = features - self._center
        (u,) = draw([features], linear_map, self._coupling_in_use, self._seeds)
        perturbation = linear_map.outputs(math.sqrt(2 * self.strength) * u).to(output.dtype)
        perturbed = output + perturbation
        self._perturbations.append((perturbed, perturbation.detach()))
        return perturbed

    def __call__(self, batch: Batch) -> Tensor:
        """Return zero, because the loss contains the term already.

        The backward pass replaces it by an estimate of kappa: ``E[g(z + v) . v] = E[v^T H v] = 2 lambda kappa`` to
        leading order, with g the gradient of the perturbed loss.
        """
        if self._finds_coupling:
            try:
                self.coupling_finder(batch)
            except SecondDerivativeError:
                self.coupling_finder.coupling = Coupling.BATCH
        kappa = batch.loss.new_zeros(())
        scale = batch.loss.new_ones(())
        perturbation, self._perturbations = self._perturbations, []
        if self.strength == 0 or not batch.loss.requires_grad:
            return kappa

        def remember_scale(gradient: Tensor) -> None:  # of gradient accumulation, of mixed precision
            scale.copy_(gradient.detach())

        batch.loss.register_hook(remember_scale)
        for perturbed, v in perturbation:
            added = kappa.clone()

            def add_to_kappa(
                gradient: Tensor, v: Tensor = v, strength: float = self.strength, added: Tensor = added
            ) -> None:
                value = inner(gradient.detach(), v).to(kappa.device) / (2 * strength * scale)
                kappa.add_(value - added)  # a second backward pass replaces what the first one added
                added.copy_(value)

            perturbed.register_hook(add_to_kappa)
        return kappa
