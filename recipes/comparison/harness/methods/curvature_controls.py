"""What of relative flatness does the work? Its Gauss-Newton form with one ingredient changed at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hf_fam.flatness.batch import Seeds
from hf_fam.flatness.coupling import Coupling
from hf_fam.flatness.directions import draw
from hf_fam.flatness.estimators.gauss_newton import push_forward
from hf_fam.layer.exact_norms import ExactNorms
from hf_fam.layer.feature_layer import FeatureLayer

from .base import register
from .penalty import Penalty

FEATURES = ("own", "normalised", "centred")


@register("curvature_control")
class CurvatureControl(Penalty):
    """``strength * mean_i Var_{k~q_i}((J u_i)_k)``: kappa of softmax cross-entropy where q is softmax(z).

    Args:
        strength: lambda.
        layer: the feature layer; its features are perturbed, u = W A phi.
        q: ``"own"`` softmax(z), kappa itself; ``"detached"``, held constant, so that being confident is not rewarded;
            ``"uniform"``, a pure Jacobian norm; ``"tempered"``, softmax(z / temperature).
        temperature: of ``"tempered"``.
        features: ``"own"``; ``"normalised"`` to the length sqrt(m), so that nothing is gained by shrinking them; or
            ``"centred"``, without their mean over the batch: what all items share, in BERT's first token a single
            feature for the most part, then does not count as size.
    """

    def __init__(
        self, strength: float, layer: str = "representation", q: str = "own", temperature: float = 1.0,
        features: str = "own",
    ) -> None:  # fmt: skip
        if q not in ("own", "detached", "uniform", "tempered") or features not in FEATURES:
            raise ValueError(f"q={q!r}, features={features!r}: the docstring lists the values.")
        self._strength, self._name, self._q, self._temperature = strength, layer, q, temperature
        self._features = features

    def attach(self, model: nn.Module, seed: int) -> None:
        self._layer, self._head = FeatureLayer(model, self._name), FeatureLayer(model, "head")
        self._norms = ExactNorms(model, self._layer)
        self._seed, self._step = seed, 0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        self._norms.attach()
        with self._layer.capture() as self._captures, self._head.capture() as self._heads:
            yield

    def term(self, loss: Tensor) -> Tensor:
        (capture,), (head,) = self._captures, self._heads
        phi, z, logits = capture.features, capture.pre_activations, head.pre_activations
        if self._features == "centred":
            phi = phi - phi.detach().mean(0, keepdim=True)
        elif self._features == "normalised":
            phi = phi / phi.norm(dim=-1, keepdim=True).clamp_min(1e-6) * phi.shape[-1] ** 0.5
        self._step += 1
        numbers = (self._seed, self._step)
        coupling = Coupling.ROWS if phi.dim() == 2 else Coupling.ITEMS
        (u,) = draw([phi], self._layer.linear_map, coupling, Seeds(numbers))
        (moved,) = push_forward([logits], [z], [u.to(z.dtype)])
        q = self._distribution(logits.float())
        moved = moved.float()
        variance = (q * moved.square()).sum(-1) - (q * moved).sum(-1).square()
        return self._strength * variance.mean()

    def _distribution(self, logits: Tensor) -> Tensor:
        if self._q == "uniform":
            return torch.full_like(logits, 1 / logits.shape[-1])
        q = (logits / (self._temperature if self._q == "tempered" else 1.0)).softmax(-1)
        return q.detach() if self._q == "detached" else q


@register("norms")
class FeatureAndWeightNorm(Penalty):
    """``strength * ||W||^2 * mean_i ||phi_i||^2``: what kappa is without the curvature of the loss."""

    def __init__(self, strength: float, layer: str = "representation") -> None:
        self._strength, self._name = strength, layer

    def attach(self, model: nn.Module, seed: int) -> None:
        self._layer = FeatureLayer(model, self._name)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        with self._layer.capture() as self._captures:
            yield

    def term(self, loss: Tensor) -> Tensor:
        (capture,) = self._captures
        phi = capture.features.float()
        return self._strength * self._layer.weight.square().sum() * phi.square().sum(-1).mean()
