"""Forms of FAM that the library does not offer, to see whether it should."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hf_fam import RelativeFlatness

from .base import register
from .penalty import Penalty


@register("fam_layers")
class SeveralLayers(Penalty):
    """``strength * (kappa of one layer + kappa of another + ...)``.

    Args:
        layers: names, separated by ``+``.
    """

    def __init__(self, strength: float, layers: str, estimator: str = "auto") -> None:
        self._strength, self._layers, self._estimator = strength, layers.split("+"), estimator

    def attach(self, model: nn.Module, seed: int) -> None:
        self._flatness = []
        for k, layer in enumerate(self._layers):
            generator = torch.Generator().manual_seed(1000 * seed + k)
            self._flatness.append(RelativeFlatness(model, layer, self._estimator, generator=generator))

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for flatness in self._flatness:
                stack.enter_context(flatness.capture())
            yield

    def term(self, loss: Tensor) -> Tensor:
        return self._strength * torch.stack([flatness(loss) for flatness in self._flatness]).sum()


class OneLayer(Penalty):
    """A term of the relative flatness of one layer."""

    def __init__(self, layer: str, estimator: str, center: bool = False) -> None:
        self._layer, self._estimator, self._center = layer, estimator, center

    def attach(self, model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._flatness = RelativeFlatness(model, self._layer, self._estimator, generator=generator, center=self._center)

    def watch(self) -> contextlib.AbstractContextManager[Any]:
        return self._flatness.capture()


@register("fam_reach")
class OneSided(OneLayer):
    """``strength * kappa`` whose gradient moves one side of the layer's features only.

    A trunk that moves can lower kappa by itself, where a frozen one leaves it to the layer and what lies above.

    Args:
        strength: lambda.
        layer: the feature layer.
        reach: ``"tail"``, W and the parameters that the model defines after it, or ``"trunk"``, all others.
        estimator: see `RelativeFlatness`.
        features: ``"own"``, or ``"centred"`` on their running mean.
    """

    def __init__(self, strength: float, layer: str, reach: str, estimator: str = "auto", features: str = "own") -> None:
        if reach not in ("tail", "trunk") or features not in ("own", "centred"):
            raise ValueError(f"reach={reach!r}, features={features!r}: the docstring lists the values.")
        super().__init__(layer, estimator, features == "centred")
        self._strength, self._reach = strength, reach

    def attach(self, model: nn.Module, seed: int) -> None:
        super().attach(model, seed)
        parameters = list(model.parameters())
        weight = self._flatness.layer.module.weight
        start = next(k for k, p in enumerate(parameters) if p is weight)
        self._tail = [p for p in parameters[start:] if p.requires_grad]

    def term(self, loss: Tensor) -> Tensor:
        kappa = self._flatness(loss)
        if not kappa.requires_grad:  # the first batch only shows the mean of the features
            return self._strength * kappa
        gradients = torch.autograd.grad(kappa, self._tail, retain_graph=True, allow_unused=True)
        # Zero, with the tail's part of kappa's gradient.
        tail = sum((g * (p - p.detach())).sum() for g, p in zip(gradients, self._tail, strict=True) if g is not None)
        return self._strength * (kappa.detach() + tail if self._reach == "tail" else kappa - tail)


@register("fam_everywhere")
class EveryLayer(Penalty):
    """The loss under relative perturbations of many layers' features at once: ``sum_l delta^2 / (2 m_l) kappa_l``.

    Args:
        delta: size of the perturbation, relative to the features.
        layers: the layers whose names contain this.
    """

    regimes = ("finetune",)

    def __init__(self, delta: float, layers: str = "output.dense") -> None:
        self._delta, self._layers = delta, layers

    def attach(self, model: nn.Module, seed: int) -> None:
        self._flatness = []
        for k, (name, module) in enumerate(model.named_modules()):
            if self._layers in name and isinstance(module, nn.Linear):
                generator = torch.Generator().manual_seed(1000 * seed + k)
                self._flatness.append(RelativeFlatness(model, module, "perturbation", generator=generator))
        if not self._flatness:
            raise ValueError(f"layers={self._layers!r}: no linear layer of the model is called so.")

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for flatness in self._flatness:
                strength = self._delta**2 / (2 * flatness.layer.in_features)
                stack.enter_context(flatness.capture(strength))
            yield

    def term(self, loss: Tensor) -> Tensor:
        return torch.stack([flatness(loss) for flatness in self._flatness]).sum()


@register("fam_running")
class RunningStrength(OneLayer):
    """``strength / (1 + running mean of kappa) * kappa``: about the logarithm of kappa where it is large.

    The mean is that of earlier steps, so the term stays linear in the loss.
    """

    def __init__(self, strength: float, layer: str, estimator: str = "auto", memory: float = 0.9) -> None:
        super().__init__(layer, estimator)
        self._strength, self._memory = strength, memory

    def attach(self, model: nn.Module, seed: int) -> None:
        super().attach(model, seed)
        self._running: Tensor | None = None

    def term(self, loss: Tensor) -> Tensor:
        kappa = self._flatness(loss)
        now = kappa.detach().abs()
        running = now if self._running is None else self._running
        self._running = self._memory * running + (1 - self._memory) * now
        return self._strength / (1 + running) * kappa


@register("fam_share")
class ShareOfLoss(OneLayer):
    """``lambda * kappa`` with the lambda that makes the term this share of the loss on the first batch.

    Lambda is set once: strengths that follow kappa while training run away as kappa vanishes.

    Args:
        share: term / loss on the first batch, as it would be at full strength.
        layer: the feature layer.
        estimator: see `RelativeFlatness`.
        ramp: ``"none"``, or ``"loss"``: lambda times ``1 - running loss / first loss``, at least 0, so that nothing is
            held back before it has been learned.
        memory: of the running mean of the loss.
    """

    def __init__(
        self, share: float, layer: str, estimator: str = "auto", ramp: str = "none", memory: float = 0.9
    ) -> None:
        if ramp not in ("none", "loss"):
            raise ValueError(f"ramp={ramp!r}: give 'none' or 'loss'.")
        super().__init__(layer, estimator)
        self._share, self._ramp, self._memory = share, ramp == "loss", memory

    def attach(self, model: nn.Module, seed: int) -> None:
        super().attach(model, seed)
        self._strength: Tensor | None = None

    def term(self, loss: Tensor) -> Tensor:
        kappa, now = self._flatness(loss), loss.detach()
        if self._strength is None:
            self._strength = self._share * now / kappa.detach().abs()
            self._first = self._running = now
        part = (1 - self._running / self._first).clamp_min(0) if self._ramp else 1.0
        self._running = self._memory * self._running + (1 - self._memory) * now
        return self._strength * part * kappa
