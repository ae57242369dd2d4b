"""The points at which the gradient of a critic is penalized."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..inputs.numbers import require_number
from ..inputs.text import quote
from .random_numbers import ItemRandomNumbers

RandomSource = torch.Generator | ItemRandomNumbers

AROUND = ("real", "generated", "both")


@dataclass(frozen=True)
class LinePoints:
    """Points on the lines between real and generated samples.

    A point is alpha x + (1 - alpha) y with alpha ~ U(0, 1). Each sample has one alpha. Sample i of one batch is paired
    with sample i of the other (Gulrajani et al. 2017).

    Examples:
        >>> LinePoints()(torch.ones(4, 3), torch.ones(4, 3)).shape
        torch.Size([4, 3])
    """

    def __call__(self, real: Tensor, generated: Tensor, *, generator: RandomSource | None = None) -> Tensor:
        """Draw the points.

        Args:
            real: of shape (n, ...).
            generated: of the same shape. The points have the wider of the two dtypes, as autocast makes half precision.
            generator: source of random numbers, a ``torch.Generator`` or `ItemRandomNumbers`; None: torch's own.

        Raises:
            ValueError: the shapes differ.
        """
        _same_shape(real, generated)
        dtype = torch.promote_types(real.dtype, generated.dtype)
        real, generated = real.detach().to(dtype), generated.detach().to(dtype)
        return torch.lerp(generated, real, _one_per_sample(real, generator))


@dataclass(frozen=True)
class LocalPoints:
    """Points around samples.

    A point is x + alpha delta with alpha ~ U(0, 1) and delta ~ U(-1, 1)^d * radius * std(batch). Each sample has one
    alpha. std is the population's, over all values of the batch. Source: Kodali et al. 2017, arXiv 1705.07215, as in
    the code of WGAN-LP.

    Args:
        around: ``"real"``, ``"generated"``, or ``"both"``: n points around each. The mean over the points is then the
            average of the two penalties.
        radius: positive, in standard deviations.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> LocalPoints(around="both")(torch.ones(4, 3), torch.zeros(4, 3)).shape
        torch.Size([8, 3])
    """

    around: str = "real"
    radius: float = 1.0

    def __post_init__(self) -> None:
        """Validate."""
        if not isinstance(self.around, str) or self.around not in AROUND:
            raise ValueError(f"around={quote(self.around)}: give one of {', '.join(map(repr, AROUND))}.")
        radius = require_number("radius", self.radius, 0, open_low=True, more=" of standard deviations")
        object.__setattr__(self, "radius", radius)

    def __call__(
        self,
        real: Tensor,
        generated: Tensor,
        *,
        generator: RandomSource | None = None,
        deviations: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Draw the points.

        Args:
            real: of shape (n, ...).
            generated: of the same shape.
            generator: source of random numbers, a ``torch.Generator`` or `ItemRandomNumbers`; None: torch's own.
            deviations: std of the real and of the generated samples, for parts of a larger batch.

        Raises:
            ValueError: the shapes differ.
        """
        _same_shape(real, generated)
        batches = {"real": [real], "generated": [generated], "both": [real, generated]}
        if deviations is None:
            deviations = real.detach().std(correction=0), generated.detach().std(correction=0)
        spreads = {"real": deviations[:1], "generated": deviations[1:], "both": deviations}
        pairs = zip(batches[self.around], spreads[self.around], strict=True)
        return torch.cat([self._near(batch.detach(), spread, generator) for batch, spread in pairs])

    def _near(self, batch: Tensor, deviation: Tensor, generator: RandomSource | None) -> Tensor:
        delta = 2 * _uniform(batch.shape, batch, generator) - 1
        return batch + _one_per_sample(batch, generator) * delta * (self.radius * deviation)


@dataclass(frozen=True)
class RealPoints:
    """The real samples themselves (R1, Mescheder et al. 2018).

    Examples:
        >>> RealPoints()(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([[1., 1.]])
    """

    def __call__(self, real: Tensor, generated: Tensor, *, generator: RandomSource | None = None) -> Tensor:
        """Return the real samples, detached."""
        return real.detach()


@dataclass(frozen=True)
class GeneratedPoints:
    """The generated samples themselves (R2, Mescheder et al. 2018).

    Examples:
        >>> GeneratedPoints()(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([[0., 0.]])
    """

    def __call__(self, real: Tensor, generated: Tensor, *, generator: RandomSource | None = None) -> Tensor:
        """Return the generated samples, detached."""
        return generated.detach()


def _same_shape(real: Tensor, generated: Tensor) -> None:
    if real.shape != generated.shape:
        raise ValueError(
            f"real samples of shape {tuple(real.shape)}, generated of {tuple(generated.shape)}: the points need "
            "batches of the same shape. Generate as many samples as the real batch has; the last one may be shorter."
        )


def _uniform(shape: torch.Size | tuple[int, ...], like: Tensor, generator: RandomSource | None) -> Tensor:
    """Return numbers from U(0, 1), drawn on the generator's device."""
    if isinstance(generator, ItemRandomNumbers):
        return generator.uniform(shape).to(like)
    device = like.device if generator is None else generator.device
    return torch.rand(shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _one_per_sample(like: Tensor, generator: RandomSource | None) -> Tensor:
    return _uniform((len(like),), like, generator).reshape(-1, *[1] * (like.ndim - 1))
