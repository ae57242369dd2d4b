"""Paths between pairs of latent codes, and the result of a search for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .path_energy import step_lengths
from .path_picture import at_share, write_animation, write_paths


@dataclass(frozen=True, eq=False)
class SamplePath:
    """Paths between samples, one for each pair.

    Attributes:
        samples: (pairs, points, ...).
        scores: the scorer's, (pairs, points), or None without a scorer.
    """

    samples: Tensor
    scores: Tensor | None

    @property
    def length(self) -> Tensor:
        """Return the length of each path in the space of the samples, (pairs,)."""
        return step_lengths(self.samples).sum(1)

    @property
    def worst_score(self) -> Tensor | None:
        """Return the lowest score on each path, (pairs,)."""
        return None if self.scores is None else self.scores.amin(1)

    @property
    def mean_score(self) -> Tensor | None:
        """Return the mean score on each path, (pairs,)."""
        return None if self.scores is None else self.scores.mean(1)

    def plot(self, path: str | Path, *, low: float = -1.0, high: float = 1.0) -> None:
        """Draw the paths: a row of images for each pair, or lines in the plane.

        Args:
            path: the file to write.
            low: value of black, for images.
            high: value of white, for images.

        Raises:
            ValueError: the samples are neither images nor points of the plane.
        """
        write_paths(self.samples, Path(path), low, high)

    def save_gif(self, path: str | Path, *, low: float = -1.0, high: float = 1.0, seconds: float = 2.0) -> None:
        """Write an animation along the paths and back, with all pairs side by side.

        Args:
            path: the file to write.
            low: value of black.
            high: value of white.
            seconds: duration of the way from z0 to z1.

        Raises:
            ValueError: the samples are no images.
        """
        write_animation(self.samples, Path(path), low, high, seconds)


@dataclass(frozen=True, eq=False)
class LatentPath(SamplePath):
    """Paths between pairs of latent codes, one for each pair.

    Attributes:
        latents: (pairs, points, ...); the samples are the generator's samples of them.
    """

    latents: Tensor

    def at(self, t: float) -> Tensor:
        """Return latent codes at t, of shape (pairs, ...), as for a slider.

        Args:
            t: 0 is z0, 1 is z1. Between two points of the path, codes are interpolated linearly.

        Raises:
            ValueError: t is not between 0 and 1.
        """
        return at_share(self.latents, t)


@dataclass(frozen=True, eq=False)
class Interpolation(LatentPath):
    """The path that `interpolate` returns, and the paths that need no search.

    Attributes:
        linear: straight in the latent space.
        slerp: the direction turns at constant speed, the radius is interpolated linearly.
        linear_in_sample: straight in the space of the samples, a cross-fade between the two samples. It has no latent
            codes.
        energy: energy of the optimized paths, before resampling, (pairs,); None for ``"linear"`` and ``"slerp"``.
        start_energy: energy of the paths before the first step.
        score_range: the scores (low, high) that count as worst and best; None if the energy does not use scores.
    """

    linear: LatentPath
    slerp: LatentPath
    linear_in_sample: SamplePath
    energy: Tensor | None
    start_energy: Tensor | None
    score_range: tuple[float, float] | None
