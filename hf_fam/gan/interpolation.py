"""Discriminator-aware interpolation between latent codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inputs.kinds import require_flag, require_function
from ..inputs.numbers import LARGEST_SEED, as_number, require_number, require_whole
from ..inputs.text import quote
from .decoding import Decoder, in_evaluation_mode
from .interpolation_checks import check_arguments
from .latent_curve import POLYNOMIAL, LatentCurve, slerp
from .latent_path import Interpolation, LatentPath, SamplePath
from .path_energy import CRITIC, LINEAR, SCORED, SLERP, path_energy, step_lengths

RESAMPLING_ROUNDS = 3
# Size of the random coefficients at the start.
START = 1e-4


def interpolate(
    generator: Callable[[Tensor], Any],
    z0: Tensor,
    z1: Tensor,
    *,
    scorer: Callable[[Tensor], Any] | None = None,
    features: Callable[[Tensor], Any] | None = None,
    energy: str = CRITIC,
    curve: str = POLYNOMIAL,
    points: int = 10,
    degree: int = 3,
    h: float = 0.2,
    steps: int = 300,
    learning_rate: float = 1e-3,
    sphere: bool = False,
    score_range: tuple[float, float] | None = None,
    calibration: Tensor | int = 2048,
    quantiles: tuple[float, float] = (0.01, 0.99),
    resample: bool = True,
    chunk_size: int | None = None,
    seed: int = 0,
) -> Interpolation:
    """Find paths between latent codes with realistic samples that change little.

    Petzka, Kronvall, Sminchisescu 2022, arXiv 2203.01035. The path's energy is lowered with Adam (betas .5, .999), all
    pairs at once; each pair keeps its best iterate. For samples of P values, s_i = ||x_{i+1} - x_i||^2 / P.

    The realism of a score c, clipped to the range (low, high), is d = (c - low + 10) / (high - low + 10). dbar_i is the
    geometric mean of d at samples i and i + 1. The energies are:

    - ``"critic"``: sum (h / dbar_i + sqrt(s_i))^2, the paper's. h / dbar_i is per step, so h depends on ``points``;
    - ``"conformal"``: sum (1 + h / dbar_i)^2 s_i, which does not;
    - ``"pullback"``: sum s_i, the shortest path;
    - ``"feature"``: the same between ``features`` of the samples; other energies use ``features`` too, if given;
    - ``"disc"``: sum 1 / dbar_i^2, the baseline of the paper's code: realism alone, whatever the length;
    - ``"linear"``, ``"slerp"``: no search.

    Args:
        generator: from latent codes (n, ...) to samples (n, ...), or to an object with ``sample``. For an autoencoder
            of diffusers, give ``vae.decode``. Modules, here and below, are in evaluation mode meanwhile. No parameter
            gets a gradient.
        z0: start of the paths, (pairs, ...).
        z1: end of the paths, of the same shape.
        scorer: from samples to one number each (or an object with ``logits``), larger for better samples. The 10 is in
            units of the score. Multiply scores whose range is far below 10, such as probabilities.
        features: from samples to (n, ...).
        energy: see above.
        curve: ``"polynomial"`` of a degree, ``"cubic"`` spline of degree - 1 inner knots, or ``"nodes"``,
            every point free.
        points: number of points on each path, with both ends; at least 3.
        degree: degree of the curve, at least 2.
        h: weight of the score against length, at least 0.
        steps: number of Adam's steps.
        learning_rate: Adam's learning rate.
        sphere: keep the radius between those of the two codes, (1 - t) ||z0|| + t ||z1||.
        score_range: the scores (low, high); None: quantiles of the scores of generated samples. The gradient of the
            score vanishes outside the range.
        calibration: latent codes for these samples, or a number to draw from a standard normal distribution. As many
            are decoded at once as in the search (pairs x points), or chunk_size.
        quantiles: the two quantiles.
        resample: at the end, move the points along each curve until the samples change at about constant speed.
        chunk_size: largest number of samples to decode at once. Activations are kept for one chunk only.
        seed: seed of the start (coefficients within 1e-4 of the straight line, the same for each pair) and of the
            calibration.

    Returns:
        The paths, their end points z0 and z1 bit for bit; everything is detached.

    Raises:
        ValueError: an argument is out of range, missing or does not fit.
        FloatingPointError: an energy is not finite.

    Examples:
        >>> z = torch.tensor([[-1.0, 0.0]])
        >>> ring = lambda x: -50 * (x.norm(dim=1) - 1) ** 2
        >>> path = interpolate(lambda z: z, z, -z, scorer=ring, score_range=(-50, 0), learning_rate=0.05)
        >>> bool(path.worst_score > path.linear.worst_score), bool(path.length > 2)
        (True, True)
    """
    h = require_number("h", h, 0)
    learning_rate = require_number("learning_rate", learning_rate, 0, open_low=True)
    check_arguments(
        z0, z1, scorer, features, energy, curve, points, degree, h, steps, learning_rate, chunk_size, calibration,
        quantiles,
    )  # fmt: skip
    sphere, resample = require_flag("sphere", sphere), require_flag("resample", resample)
    seed = require_whole("seed", seed, 0, LARGEST_SEED)
    if score_range is not None:
        score_range = _checked_range(score_range)
    for name, function in (("generator", generator), ("scorer", scorer), ("features", features)):
        require_function(name, function, "a function of tensors")
    decode = Decoder(generator, scorer, features, chunk_size)
    with in_evaluation_mode(generator, scorer, features):
        search = _Search(decode, z0, z1, LatentCurve(curve, degree, points, sphere), points)
        if energy in SCORED and score_range is None:
            score_range = _calibrate_score_range(decode, z0, calibration, quantiles, seed, len(z0) * points)
        start_energy = lowest = None
        coefficients = search.start(seed)
        if energy not in (LINEAR, SLERP):
            cost = _Cost(energy, score_range, h)
            coefficients, lowest, start_energy = search.descend(coefficients, cost, steps, learning_rate)
        straight = LatentCurve(POLYNOMIAL, 2, points, False)
        none = torch.zeros_like(search.z0)[:, None]
        linear = search.path(lambda t: straight.at(t, search.z0, search.z1, none), resample)
        spherical = search.path(lambda t: slerp(t, search.z0, search.z1), resample)
        path = {LINEAR: linear, SLERP: spherical}.get(energy) or search.path(
            lambda t: search.curve.at(t, search.z0, search.z1, coefficients), resample
        )
        cross_fade = search.cross_fade(linear.samples[:, 0], linear.samples[:, -1])
    return Interpolation(
        **vars(path),
        linear=linear,
        slerp=spherical,
        linear_in_sample=cross_fade,
        energy=lowest,
        start_energy=start_energy,
        score_range=score_range,
    )


def _checked_range(score_range: Any) -> tuple[float, float]:
    if isinstance(score_range, (tuple, list)) and len(score_range) == 2:
        low, high = map(as_number, score_range)
        if -math.inf < low < high < math.inf:
            return low, high
    raise ValueError(f"score_range={quote(score_range)}: give two finite scores, the lower one first.")


@dataclass(frozen=True)
class _Cost:
    energy: str
    score_range: tuple[float, float] | None
    h: float

    def __call__(self, outputs: Tensor, scores: Tensor | None = None) -> Tensor:
        return path_energy(self.energy, outputs, scores, self.score_range, self.h)

    @property
    def uses_scores(self) -> bool:
        return self.energy in SCORED


class _Search:
    """All pairs, flattened to (pairs, dim), in float32 or wider."""

    def __init__(self, decode: Decoder, z0: Tensor, z1: Tensor, curve: LatentCurve, points: int) -> None:
        self.decode, self.curve, self.shape, self.type = decode, curve, z0.shape, z0.dtype
        wide = torch.promote_types(z0.dtype, torch.float32)
        self.z0, self.z1 = (z.detach().flatten(1).to(wide) for z in (z0, z1))
        times = torch.linspace(0, 1, points, dtype=wide, device=z0.device)
        self.times = times.expand(len(z0), points)

    def start(self, seed: int) -> Tensor:
        """Return the coefficients at the start, the same for each pair.

        So a pair's path does not depend on the other pairs.
        """
        random = torch.Generator().manual_seed(seed)
        uniform = torch.rand((self.curve.size, self.z0.shape[1]), dtype=torch.float64, generator=random)
        return ((2 * uniform - 1) * START).to(self.z0).expand(len(self.z0), -1, -1).clone()

    @torch.enable_grad()
    def descend(self, start: Tensor, cost: _Cost, steps: int, learning_rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return coefficients, their energy, and the energy at the start."""
        coefficients = start.requires_grad_()
        adam = torch.optim.Adam([coefficients], lr=learning_rate, betas=(0.5, 0.999))
        with torch.no_grad():  # the ends are fixed
            ends = self._paths(self.decode.energy_inputs, torch.stack([self.z0, self.z1], 1), cost.uses_scores)
        for step in range(steps + 1):
            z = self.curve.at(self.times, self.z0, self.z1, coefficients)
            inner = self._paths(self.decode.energy_inputs, z[:, 1:-1], cost.uses_scores)
            energies = cost(*map(_join_ends, ends, inner))
            if not energies.isfinite().all():
                pair = int((~energies.detach().isfinite()).nonzero()[0])
                raise FloatingPointError(
                    f"the energy of pair {pair} is {float(energies[pair].detach())} at step {step}: lower "
                    "learning_rate, or check the generator's and the scorer's values."
                )
            if not energies.requires_grad:
                raise ValueError(
                    "the latent codes get no gradient from the samples. Remove no_grad, .detach() or numpy from the "
                    "generator, scorer or features, and do not call this in torch.inference_mode()."
                )
            current = energies.detach()
            if step == 0:
                start_energy = lowest = current
                best = coefficients.detach().clone()
            is_better = current < lowest
            lowest = torch.where(is_better, current, lowest)
            best = torch.where(is_better[:, None, None], coefficients.detach(), best)
            if step < steps:
                (coefficients.grad,) = torch.autograd.grad(energies.sum(), coefficients)
                adam.step()
        return best, lowest, start_energy

    @torch.no_grad()
    def path(self, at: Callable[[Tensor], Tensor], resample: bool) -> LatentPath:
        """Return the points of a curve, which is a function of t, with their samples."""
        times = self.times
        for _ in range(RESAMPLING_ROUNDS if resample else 0):
            (samples,) = self._paths(lambda rows: (self.decode.samples(rows),), at(times))
            times = _equally_spaced(times, step_lengths(samples))
        z = at(times)
        samples, *scores = self._paths(self.decode.samples_and_scores, z)
        latents = z.reshape(len(z), -1, *self.shape[1:]).to(self.type)
        return LatentPath(samples, scores[0] if scores else None, latents)

    @torch.no_grad()
    def cross_fade(self, start: Tensor, end: Tensor) -> SamplePath:
        """Return straight lines between samples (pairs, ...), with their scores."""
        times = self.times[0].to(start).reshape(-1, *[1] * (start.ndim - 1))
        samples = torch.lerp(start[:, None], end[:, None], times)
        if self.decode.scorer is None:
            return SamplePath(samples, None)
        (scores,) = self.decode.chunked(lambda rows: (self.decode.scores(rows),), samples.flatten(0, 1))
        return SamplePath(samples, scores.reshape(samples.shape[:2]))

    def _paths(self, function: Callable[..., tuple[Tensor, ...]], z: Tensor, *arguments: Any) -> list[Tensor]:
        """Apply a function to points (pairs, n, dim); results are (pairs, n, ...)."""
        rows = z.reshape(-1, *self.shape[1:]).to(self.type)
        return [
            output.reshape(*z.shape[:2], *output.shape[1:])
            for output in self.decode.chunked(function, rows, *arguments)
        ]


def _join_ends(ends: Tensor, inner: Tensor) -> Tensor:
    """Return whole paths, (pairs, n, ...), from ends and inner points."""
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def _equally_spaced(times: Tensor, lengths: Tensor) -> Tensor:
    """Return times at which a path has covered equal shares of its length.

    The speed counts as constant between the given times.
    """
    distance = torch.cat([torch.zeros_like(times[:, :1]), lengths.to(times).cumsum(1)], 1)
    total = distance[:, -1:]
    target = torch.linspace(0, 1, times.shape[1], dtype=times.dtype, device=times.device) * total
    right = torch.searchsorted(distance, target).clamp(1, times.shape[1] - 1)
    left = right - 1
    step = distance.gather(1, right) - distance.gather(1, left)
    fraction = ((target - distance.gather(1, left)) / step.masked_fill(step == 0, 1)).clamp(0, 1)
    new_times = torch.lerp(times.gather(1, left), times.gather(1, right), fraction)
    new_times[:, 0], new_times[:, -1] = 0, 1
    return torch.where(total > 0, new_times, times)


@torch.no_grad()
def _calibrate_score_range(
    decode: Decoder,
    z0: Tensor,
    calibration: Tensor | int,
    quantiles: tuple[float, float],
    seed: int,
    default_size: int,
) -> tuple[float, float]:
    """Return quantiles of the scores of generated samples.

    As many samples are decoded at once as in the search.
    """
    if not isinstance(calibration, Tensor):
        random = torch.Generator().manual_seed(seed)
        normal = torch.randn((calibration, *z0.shape[1:]), dtype=torch.float64, generator=random)
        calibration = normal.to(z0)
    (scores,) = decode.chunked(
        lambda rows: (decode.scores(decode.samples(rows)),), calibration, default_size=default_size
    )
    low, high = torch.quantile(scores.double().cpu(), torch.tensor(quantiles, dtype=torch.float64)).tolist()
    if not low < high:
        raise ValueError(
            f"the scores of {len(calibration)} generated samples have the quantiles {low!r} and {high!r}, so the "
            "scorer does not distinguish samples: give another scorer or score_range."
        )
    return low, high
