"""An independent judge of how realistic the samples of paths are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..inputs.kinds import require_function, require_instance
from .decoding import in_evaluation_mode, matrix_of
from .latent_path import Interpolation, SamplePath
from .path_comparison import PathComparison, paired_difference
from .realism_scores import (
    NEIGHBOR,
    Score,
    confidence,
    density_score,
    discriminator_score,
    is_constant,
    neighbor_score,
    reconstruction,
)
from .sample_checks import check_function, check_samples

# Half of the real samples is the reference, and the other half gives the unit of the scores.
FEWEST_REAL = 4 * NEIGHBOR
# Samples that go through the user's functions at once.
CHUNK = 500


class RealismJudge:
    """Judge samples by comparing them with real ones, without a path's own critic.

    Give networks that were trained without the generator and without the scorer of `interpolate`, on other real samples
    if possible. A path can raise the score that it is guided by without looking more real; it cannot aim at the judge.

    The scores are larger for more realistic samples. Each is shifted and scaled by real samples that it was not fitted
    to: 0 is their mean, -1 is one of their standard deviations worse.

    - ``"pixels"``: minus the distance to the fifth nearest real sample;
    - ``"features"``: the same distance between features;
    - ``"density"``: the log-density of the features, by a normal kernel density estimate;
    - ``"confidence"``: minus the entropy of the classifier;
    - ``"discriminator"``: the log-odds that a sample is real and not generated, by logistic regression on the features;
      only with ``generated``;
    - ``"reconstruction"``: minus the root mean squared error of an autoencoder; only with ``autoencoder``.

    Args:
        real: real samples of shape (n, ...), n at least 20. Half of them, every second one, is compared with; the other
            half gives the unit. Both are kept in float64. Shuffle samples that are sorted.
        features: from samples to (n, m), such as the last hidden layer of a classifier.
        classifier: from samples to logits (n, classes), or to an object with ``logits``.
        generated: samples of the generator from random codes, at least 20, for the discriminator.
        autoencoder: from samples to samples, or to an object with ``sample``; trained on real samples alone.

    Attributes:
        names: names of the scores.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or real samples all have the same score.
        TypeError: features, classifier or autoencoder cannot be called.

    Examples:
        >>> real = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> judge = RealismJudge(real, features=lambda x: x, classifier=lambda x: 9 * x)
        >>> judge.names
        ('pixels', 'features', 'density', 'confidence')
        >>> far = judge(torch.tensor([[9.0, 9.0]]))
        >>> bool(far["pixels"] < -3), bool(far["density"] < -3)
        (True, True)
    """

    def __init__(
        self,
        real: Tensor,
        *,
        features: Callable[[Tensor], Any],
        classifier: Callable[[Tensor], Any],
        generated: Tensor | None = None,
        autoencoder: Callable[[Tensor], Any] | None = None,
    ) -> None:
        check_samples("real", real, FEWEST_REAL)
        for name, function in (("features", features), ("classifier", classifier)):
            check_function(name, function)
        require_function("autoencoder", autoencoder, "a function of samples")
        self._functions = (features, classifier, autoencoder)
        self._shape = real.shape[1:]
        reference, held_out = real[0::2], real[1::2]
        rows = self._features(reference)
        self._of_features: dict[str, Score] = {"features": neighbor_score(rows), "density": density_score(rows)}
        self._of_samples: dict[str, Score] = {"pixels": neighbor_score(reference.flatten(1).double())}
        if generated is not None:
            check_samples("generated", generated, FEWEST_REAL, self._shape)
            self._of_features["discriminator"] = discriminator_score(rows, self._features(generated))
        raw = self._raw(held_out)
        self.names = tuple(raw)
        self._units = {name: (values.mean(), values.std()) for name, values in raw.items()}
        for name, values in raw.items():
            if is_constant(values):
                raise ValueError(
                    f'all real samples have the same score "{name}": give a judge whose '
                    f"{_source_of(name)} distinguishes real samples."
                )

    def __call__(self, samples: Tensor) -> dict[str, Tensor]:
        """Return each score of samples (n, ...), of shape (n,), in float64.

        Raises:
            ValueError: the samples have another shape than the real ones, or are not finite.
        """
        check_samples("samples", samples, 1, self._shape)
        return {
            name: (values - self._units[name][0]) / self._units[name][1] for name, values in self._raw(samples).items()
        }

    def score_path(self, path: SamplePath) -> dict[str, Tensor]:
        """Return each score of paths at their inner points, (pairs, points - 2).

        The end points are given, so they say nothing about a path.
        """
        inner = path.samples[:, 1:-1]
        return {name: values.reshape(inner.shape[:2]) for name, values in self(inner.flatten(0, 1)).items()}

    def compare(self, path: SamplePath, baseline: SamplePath | None = None) -> PathComparison:
        """Compare paths with those of a baseline between the same end points.

        Args:
            path: of at least two pairs; an interval needs many more, such as 100.
            baseline: None for the straight line in the latent space, ``path.linear``.

        Returns:
            Differences with 95 % intervals. ``print`` shows them as a table.

        Raises:
            ValueError: there is no baseline, or the pairs differ.
        """
        require_instance("path", path, SamplePath, "a result of interpolate")
        if baseline is None:
            if not isinstance(path, Interpolation):
                raise ValueError("a path without `linear` has nothing to be compared with: give baseline=.")
            baseline = path.linear
        require_instance("baseline", baseline, SamplePath, "a path, or None")
        if len(path.samples) != len(baseline.samples) or len(path.samples) < 2:
            raise ValueError(
                f"paths of {len(path.samples)} pairs, a baseline of {len(baseline.samples)}: give the same pairs, at "
                "least two."
            )
        scores, others = self.score_path(path), self.score_path(baseline)
        return PathComparison(
            mean={name: paired_difference(scores[name].mean(1), others[name].mean(1)) for name in self.names},
            worst={name: paired_difference(scores[name].amin(1), others[name].amin(1)) for name in self.names},
            pairs=len(path.samples),
        )

    @torch.no_grad()
    def _raw(self, samples: Tensor) -> dict[str, Tensor]:
        """Return the scores in their own units."""
        _, classifier, autoencoder = self._functions
        rows = self._features(samples)
        raw = {name: score(samples.flatten(1).double()) for name, score in self._of_samples.items()}
        raw |= {name: score(rows) for name, score in self._of_features.items()}
        raw["confidence"] = confidence(self._matrix("classifier", classifier, samples))
        if autoencoder is not None:
            with in_evaluation_mode(autoencoder):
                parts = [reconstruction(part, autoencoder(part)) for part in samples.split(CHUNK)]
            raw["reconstruction"] = torch.cat(parts)
        for name, values in raw.items():
            if not values.isfinite().all():
                raise ValueError(f'the score "{name}" is not finite: check the values of the {_source_of(name)}.')
        return raw

    def _features(self, samples: Tensor) -> Tensor:
        return self._matrix("features", self._functions[0], samples)

    @torch.no_grad()
    def _matrix(self, name: str, function: Callable[[Tensor], Any], samples: Tensor) -> Tensor:
        """Return what a function of the samples returns, as (n, m) in float64."""
        with in_evaluation_mode(function):
            return torch.cat([matrix_of(name, function, part) for part in samples.split(CHUNK)]).double()


def _source_of(name: str) -> str:
    """Return what of the user's a score is computed from."""
    return {"pixels": "samples", "confidence": "classifier", "reconstruction": "autoencoder"}.get(name, "features")
