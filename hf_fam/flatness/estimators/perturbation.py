"""kappa by perturbing the features: first order only, in the one forward pass, for any layer and kernel.

With A of independent zero-mean entries of variance 1/m,

    E_A[ L(phi + delta A phi) ] = L + delta^2 / (2m) kappa + higher orders,

so adding ``delta W A phi`` to z trains on ``L + lambda kappa`` with ``lambda = delta^2 / (2m)`` in expectation
(noise injection, Bishop 1995; feature robustness, Petzka et al. 2021). The loss is then the perturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ...calculus.derivatives import SecondDerivativeError, inner
from ...layer.linear_map import LinearMap
from ..batch import Batch, Seeds
from ..coupling import Coupling, CouplingFinder
from ..directions import draw
from ..strength import is_strength
from .base import ActsIn, Choice, Estimator


class FeaturePerturbation(Estimator):
    """The loss itself under random feature perturbations: first order only, for any layer and kernel.

    Attributes:
        strength: lambda of the next forward pass; 0 leaves it as it is.
        coupling: which rows share a matrix, found at the first batch.
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
        self._used_coupling = Coupling.BATCH
        self._finds_coupling = True
        self._added: list[tuple[Tensor, Tensor]] = []

    def adapt_to_sharding(self) -> None:
        """Take one matrix for the whole batch: the loss must not be differentiated to find the coupling."""
        self.coupling_finder.coupling, self._finds_coupling = Coupling.BATCH, False

    def begin(self, strength: float | None, next_seeds: Callable[[], Seeds], mean: Tensor | None) -> None:
        """Perturb the layer's output in the next forward pass.

        Raises:
            ValueError: there is no strength, or a negative one.
        """
        if strength is None or not is_strength(strength):
            raise ValueError(
                f'strength={strength!r}: estimator="{self.name}" acts in the forward pass, so write '
                "capture(strength=0.003), with a lambda that is not negative."
            )
        self.strength, self._seeds, self._center, self._added = strength, next_seeds(), mean, []
        # One matrix for the whole batch is right whatever is coupled, so it serves until the coupling is known. A
        # coupling that is found after the forward pass must not change what is computed again in the backward pass.
        self._used_coupling = self.coupling_finder.coupling or Coupling.BATCH
        self.layer.perturb = self.perturb

    def perturb(self, features: Tensor, output: Tensor, linear_map: LinearMap) -> Tensor:
        """z + sqrt(2 lambda) W A phi, A with entries of unit variance."""
        if self.strength == 0:
            return output
        if self._center is not None:
            features = features - self._center
        (u,) = draw([features], linear_map, self._used_coupling, self._seeds)
        added = linear_map.outputs(math.sqrt(2 * self.strength) * u).to(output.dtype)
        perturbed = output + added
        self._added.append((perturbed, added.detach()))
        return perturbed

    def __call__(self, batch: Batch) -> Tensor:
        """Zero, as the loss contains the term; the backward pass fills in an estimate of kappa.

        From ``E[g(z + v) . v] = E[v^T H v] = 2 lambda kappa`` to leading order, g the gradient of the perturbed loss.
        """
        if self._finds_coupling:
            try:
                self.coupling_finder(batch)
            except SecondDerivativeError:
                self.coupling_finder.coupling = Coupling.BATCH
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
