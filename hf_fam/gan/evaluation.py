"""Metrics of a generator and its critic on held-out samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distances import earth_movers_distance, frechet_distance
from .networks import call, in_evaluation_mode, labels_of_points, samples_of, weight_dtype
from .penalty import gradient_norms, one_value_per_sample

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SampleComparison:
    """Compares generated with real samples, a chunk at a time.

    Args:
        generator: the generator to take samples from.
        critic: the critic.
        chunk: samples that go through a network at once.
        features: from samples (n, ...) to features (n, m), for the Frechet distance; None: no such distance.
        emd: whether to compute the earth mover's distance.
        target: the norm that the critic's gradients should stay below.
    """

    generator: nn.Module
    critic: nn.Module
    chunk: int = 64
    features: Features | None = None
    emd: bool = False
    target: float = 1.0

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return samples, with the generator in evaluation mode."""
        with in_evaluation_mode(self.generator):
            return torch.cat([samples_of(call(self.generator, *part)) for part in self._parts(latents, labels)])

    def values(self, samples: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the critic's values of samples, in evaluation mode, (n,)."""
        with in_evaluation_mode(self.critic):
            return self._values(samples.to(weight_dtype(self.critic)), labels)

    def metrics(
        self, real: Tensor, generated: Tensor, points: Tensor, labels: Tensor | None = None
    ) -> dict[str, float]:
        """Return the metrics of generator and critic.

        Args:
            real: held-out samples, of shape (n, ...).
            generated: of the same shape.
            points: points at which the critic's gradient is measured.
            labels: of the real and of the generated samples; None for networks without labels.

        Returns:
            ``wasserstein_estimate``, mean f(real) - mean f(generated), without the penalty; ``gradient_violation``,
            the largest gradient norm minus the target; and ``emd`` and ``frechet_distance`` if they are requested.
        """
        metrics = {}
        with in_evaluation_mode(self.critic):
            estimate = self._values(real, labels).mean() - self._values(generated, labels).mean()
            parts = self._parts(points, labels_of_points(labels, points))
            norms = torch.cat([gradient_norms(self.critic, part, labels=own) for part, own in parts])
            metrics["wasserstein_estimate"] = estimate.item()
            metrics["gradient_violation"] = norms.max().item() - self.target
        if self.emd:
            metrics["emd"] = earth_movers_distance(real, generated)
        if self.features is not None:
            metrics["frechet_distance"] = frechet_distance(self._features(real), self._features(generated))
        return metrics

    def _values(self, samples: Tensor, labels: Tensor | None) -> Tensor:
        parts = self._parts(samples, labels)
        values = (one_value_per_sample(call(self.critic, x, own), len(x), "critic") for x, own in parts)
        return torch.cat([part.double().cpu() for part in values])

    def _parts(self, inputs: Tensor, labels: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Return what goes through a network at once."""
        parts = inputs.split(self.chunk)
        return list(zip(parts, [None] * len(parts) if labels is None else labels.split(self.chunk), strict=True))

    @torch.no_grad()
    def _features(self, samples: Tensor) -> Tensor:
        assert self.features is not None
        features = [self.features(part) for part in samples.split(self.chunk)]
        wrong = next((part for part in features if not isinstance(part, Tensor) or part.ndim != 2), None)
        if wrong is not None:
            description = f"shape {tuple(wrong.shape)}" if isinstance(wrong, Tensor) else f"type {type(wrong).__name__}"
            raise ValueError(
                f"features returned {description}: it must return a tensor of shape (n, m), one row for each sample."
            )
        return torch.cat(features)
