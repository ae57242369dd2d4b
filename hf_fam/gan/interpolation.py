"""Discriminator-aware interpolation between latent codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .decoding import Decoder, evaluating
from .latent_curve import CURVES, POLYNOMIAL, LatentCurve, slerp
from .path_energy import CRITIC, ENERGIES, FEATURE, LINEAR, SCORED, SLERP, path_energy, step_lengths

RESAMPLING_ROUNDS = 3
START = 1e-4


@dataclass(frozen=True, eq=False)
class LatentPath:
    """Paths between pairs of latent codes, one for each pair.

    Attributes:
        latents: (pairs, points, ...).
        samples: what the generator makes of them, (pairs, points, ...).
        scores: the scorer's, (pairs, points), or None without a scorer.
    """

    latents: Tensor
    samples: Tensor
    scores: Tensor | None

    @property
    def length(self) -> Tensor:
        """The length of each path in the space of the samples, (pairs,)."""
        return step_lengths(self.samples).sum(1)

    @property
    def worst_score(self) -> Tensor | None:
        """The lowest score on each path, (pairs,)."""
        return None if self.scores is None else self.scores.amin(1)

    @property
    def mean_score(self) -> Tensor | None:
        """The mean score on each path, (pairs,)."""
        return None if self.scores is None else self.scores.mean(1)


@dataclass(frozen=True, eq=False)
class Interpolation(LatentPath):
    """What `interpolate` found, beside the two paths that need no search.

    Attributes:
        linear: straight in the latent space.
        slerp: the direction turns at constant speed, the radius is interpolated linearly.
        energy: of the paths as optimized, before resampling, (pairs,); None for ``"linear"`` and ``"slerp"``.
        start_energy: of the same before the first step.
        score_range: the scores (low, high) that count as worst and best, where the energy asks for them.
    """

    linear: LatentPath
    slerp: LatentPath
    energy: Tensor | None
    start_energy: Tensor | None
    score_range: tuple[float, float] | None


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
    """Find paths between latent codes on which a generator's samples stay good and change little.

    Petzka, Kronvall, Sminchisescu 2022, arXiv 2203.01035. The path's energy is lowered with Adam (betas .5, .999), all
    pairs at once; each pair keeps its best iterate. With s_i = ||x_{i+1} - x_i||^2 / P for samples of P values, the
    realism d = (c - low + 10) / (high - low + 10) of a score c, clipped to the range (low, high), and dbar_i the
    geometric mean of d at samples i and i + 1:

    - ``"critic"``: sum (h / dbar_i + sqrt(s_i))^2, the paper's. h / dbar_i is per step, so h depends on ``points``;
    - ``"conformal"``: sum (1 + h / dbar_i)^2 s_i, which does not;
    - ``"pullback"``: sum s_i, the shortest path;
    - ``"feature"``: the same between ``features`` of the samples; ``features`` given with another energy do so there;
    - ``"linear"``, ``"slerp"``: no search.

    Args:
        generator: from latent codes (n, ...) to samples (n, ...), or to an object with ``sample``: of an autoencoder of
            diffusers give ``vae.decode``. A module is put in evaluation mode meanwhile, here and below; no parameter
            gets a gradient.
        z0: where the paths begin, (pairs, ...).
        z1: where they end, of the same shape.
        scorer: from samples to one number each (or an object with ``logits``), larger for better ones. The 10 is in its
            units: a scorer whose range is far below 10, such as a probability, hardly acts; multiply it.
        features: from samples to (n, ...).
        energy: see above.
        curve: ``"polynomial"`` of a degree, ``"cubic"`` spline of degree - 1 inner knots, or ``"nodes"``,
            every point free.
        points: on each path, with both ends; at least 3.
        degree: at least 2.
        h: at least 0: how much the score counts against length.
        steps: of Adam.
        learning_rate: Adam's.
        sphere: keep the radius between those of the two codes, (1 - t) ||z0|| + t ||z1||.
        score_range: the scores (low, high); None: quantiles of the scores of generated samples. The gradient of the
            score vanishes outside the range.
        calibration: latent codes for these samples, or how many to draw from a standard normal distribution. They are
            decoded pairs x points at once, as many as the search does, or chunk_size.
        quantiles: which ones.
        resample: in the end, move the points along each curve until the samples change at about constant speed.
        chunk_size: decode at most so many samples at once, and keep their activations for no more than one chunk.
        seed: of the start (coefficients within 1e-4 of the straight line, the same for each pair) and the calibration.

    Returns:
        The paths, their end points z0 and z1 bit for bit; everything is detached.

    Raises:
        ValueError: an argument is out of range, missing or does not fit.
        FloatingPointError: an energy is not finite.

    Examples:
        >>> z = torch.tensor([[-1.0, 0.0]])
        >>> ring = lambda x: -50 * (x.norm(dim=1) - 1) ** 2
        >>> found = interpolate(lambda z: z, z, -z, scorer=ring, score_range=(-50, 0), learning_rate=0.05)
        >>> bool(found.worst_score > found.linear.worst_score), bool(found.length > 2)
        (True, True)
    """
    _check(
        z0, z1, scorer, features, energy, curve, points, degree, h, steps, learning_rate, chunk_size, calibration,
        quantiles,
    )  # fmt: skip
    decode = Decoder(generator, scorer, features, chunk_size)
    with evaluating(generator, scorer, features):
        search = _Search(decode, z0, z1, LatentCurve(curve, degree, points, sphere), points)
        if energy in SCORED and score_range is None:
            score_range = _calibrated(decode, z0, calibration, quantiles, seed, len(z0) * points)
        if score_range is not None and not _is_range(score_range):
            raise ValueError(f"score_range={score_range!r}: give two finite scores, the lower one first.")
        start_energy = lowest = None
        coefficients = search.start(seed)
        if energy not in (LINEAR, SLERP):
            cost = _Cost(energy, score_range, h)
            coefficients, lowest, start_energy = search.descend(coefficients, cost, steps, learning_rate)
        straight = LatentCurve(POLYNOMIAL, 2, points, False)
        none = torch.zeros_like(search.z0)[:, None]
        linear = search.path(lambda t: straight.at(t, search.z0, search.z1, none), resample)
        spherical = search.path(lambda t: slerp(t, search.z0, search.z1), resample)
        found = {LINEAR: linear, SLERP: spherical}.get(energy) or search.path(
            lambda t: search.curve.at(t, search.z0, search.z1, coefficients), resample
        )
    return Interpolation(
        found.latents, found.samples, found.scores, linear, spherical, lowest, start_energy, score_range
    )


def _is_range(given: tuple[float, ...]) -> bool:
    return len(given) == 2 and all(map(math.isfinite, given)) and given[0] < given[1]


@dataclass(frozen=True)
class _Cost:
    energy: str
    score_range: tuple[float, float] | None
    h: float

    def __call__(self, outputs: Tensor, scores: Tensor | None = None) -> Tensor:
        return path_energy(self.energy, outputs, scores, self.score_range, self.h)

    @property
    def scored(self) -> bool:
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
        """The same for each pair, so that a pair's path does not depend on the others."""
        random = torch.Generator().manual_seed(seed)
        drawn = torch.rand((self.curve.size, self.z0.shape[1]), dtype=torch.float64, generator=random)
        return ((2 * drawn - 1) * START).to(self.z0).expand(len(self.z0), -1, -1).clone()

    @torch.enable_grad()
    def descend(self, start: Tensor, cost: _Cost, steps: int, learning_rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients, their energy, and that of the start."""
        coefficients = start.requires_grad_()
        adam = torch.optim.Adam([coefficients], lr=learning_rate, betas=(0.5, 0.999))
        with torch.no_grad():  # they never move
            ends = self._paths(self.decode.measured, torch.stack([self.z0, self.z1], 1), cost.scored)
        for step in range(steps + 1):
            z = self.curve.at(self.times, self.z0, self.z1, coefficients)
            inner = self._paths(self.decode.measured, z[:, 1:-1], cost.scored)
            energies = cost(*map(_joined, ends, inner))
            if not energies.isfinite().all():
                bad = int((~energies.detach().isfinite()).nonzero()[0])
                raise FloatingPointError(
                    f"the energy of pair {bad} is {float(energies[bad].detach())} at step {step}: look at the "
                    "generator's and the scorer's values there, or lower learning_rate."
                )
            if not energies.requires_grad:
                raise ValueError(
                    "no gradient comes back from the samples to the latent codes: the generator, scorer or features "
                    "detaches (no_grad, .detach(), numpy), or this runs in torch.inference_mode()."
                )
            now = energies.detach()
            if step == 0:
                first = lowest = now
                best = coefficients.detach().clone()
            better = now < lowest
            lowest = torch.where(better, now, lowest)
            best = torch.where(better[:, None, None], coefficients.detach(), best)
            if step < steps:
                (coefficients.grad,) = torch.autograd.grad(energies.sum(), coefficients)
                adam.step()
        return best, lowest, first

    @torch.no_grad()
    def path(self, at: Callable[[Tensor], Tensor], resample: bool) -> LatentPath:
        """The points of a curve that is given as a function of t, with what they decode to."""
        times = self.times
        for _ in range(RESAMPLING_ROUNDS if resample else 0):
            (samples,) = self._paths(lambda rows: (self.decode.samples(rows),), at(times))
            times = _equally_spaced(times, step_lengths(samples))
        z = at(times)
        samples, *scores = self._paths(self.decode.shown, z)
        return LatentPath(z.reshape(len(z), -1, *self.shape[1:]).to(self.type), samples, scores[0] if scores else None)

    def _paths(self, function: Callable[..., tuple[Tensor, ...]], z: Tensor, *more: Any) -> list[Tensor]:
        """What the function makes of points (pairs, n, dim), each as (pairs, n, ...)."""
        rows = z.reshape(-1, *self.shape[1:]).to(self.type)
        return [made.reshape(*z.shape[:2], *made.shape[1:]) for made in self.decode.chunked(function, rows, *more)]


def _joined(ends: Tensor, inner: Tensor) -> Tensor:
    """Whole paths, (pairs, n, ...), from their two ends and the points between them."""
    return torch.cat([ends[:, :1], inner, ends[:, 1:]], 1)


def _equally_spaced(times: Tensor, lengths: Tensor) -> Tensor:
    """Times at which a path has covered equal shares of its length, if the speed is constant between the given ones."""
    covered = torch.cat([torch.zeros_like(times[:, :1]), lengths.to(times).cumsum(1)], 1)
    total = covered[:, -1:]
    wanted = torch.linspace(0, 1, times.shape[1], dtype=times.dtype, device=times.device) * total
    right = torch.searchsorted(covered, wanted).clamp(1, times.shape[1] - 1)
    left = right - 1
    step = covered.gather(1, right) - covered.gather(1, left)
    share = ((wanted - covered.gather(1, left)) / step.masked_fill(step == 0, 1)).clamp(0, 1)
    found = torch.lerp(times.gather(1, left), times.gather(1, right), share)
    found[:, 0], found[:, -1] = 0, 1
    return torch.where(total > 0, found, times)


@torch.no_grad()
def _calibrated(
    decode: Decoder,
    z0: Tensor,
    calibration: Tensor | int,
    quantiles: tuple[float, float],
    seed: int,
    at_most: int,
) -> tuple[float, float]:
    """Quantiles of the scores of generated samples, decoded at most so many at once as the search does."""
    if not isinstance(calibration, Tensor):
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randn((calibration, *z0.shape[1:]), dtype=torch.float64, generator=random)
        calibration = drawn.to(z0)
    if calibration.shape[1:] != z0.shape[1:] or len(calibration) < 2:
        raise ValueError(
            f"calibration of shape {tuple(calibration.shape)}: give at least 2 latent codes shaped as z0, (n, "
            f"{', '.join(map(str, z0.shape[1:]))})."
        )
    (scores,) = decode.chunked(lambda rows: (decode.scores(decode.samples(rows)),), calibration, at_most=at_most)
    low, high = torch.quantile(scores.double().cpu(), torch.tensor(quantiles, dtype=torch.float64)).tolist()
    if not low < high:
        raise ValueError(
            f"the scores of {len(calibration)} generated samples have the quantiles {low!r} and {high!r}: a scorer "
            "that does not tell samples apart cannot guide a path. Look at it, or give score_range."
        )
    return low, high


def _check(
    z0: Tensor, z1: Tensor, scorer: Any, features: Any, energy: str, curve: str, points: int, degree: int, h: float,
    steps: int, learning_rate: float, chunk_size: int | None, calibration: Tensor | int,
    quantiles: tuple[float, float],
) -> None:  # fmt: skip
    for name, chosen, choices in (("energy", energy, ENERGIES), ("curve", curve, CURVES)):
        if chosen not in choices:
            raise ValueError(f"{name}={chosen!r}: give one of {', '.join(map(repr, choices))}.")
    if z0.shape != z1.shape or z0.ndim < 2 or not len(z0) or not z0.is_floating_point() or z0.dtype != z1.dtype:
        raise ValueError(
            f"z0 is {z0.dtype} of shape {tuple(z0.shape)}, z1 {z1.dtype} of {tuple(z1.shape)}: give floating-point "
            "codes of the same type and shape (pairs, ...); a single pair as z0[None], z1[None]."
        )
    for name, z in (("z0", z0), ("z1", z1)):
        if not z.isfinite().all():
            raise ValueError(f"{name} has values that are not finite.")
    if energy in SCORED and scorer is None:
        raise ValueError(f'energy="{energy}" needs scorer=, such as the critic; "pullback" does without.')
    if energy == FEATURE and features is None:
        raise ValueError('energy="feature" needs features=, a function of the samples.')
    for name, number, least in (("points", points, 3), ("degree", degree, 2), ("steps", steps, 0)):
        if not _whole(number, least):
            raise ValueError(f"{name}={number!r}: give a whole number of at least {least}.")
    if chunk_size is not None and not _whole(chunk_size, 1):
        raise ValueError(f"chunk_size={chunk_size!r}: give a whole number of at least 1, or None.")
    if not isinstance(calibration, Tensor) and not _whole(calibration, 2):
        raise ValueError(f"calibration={calibration!r}: give latent codes, or a whole number of at least 2.")
    if not (math.isfinite(h) and h >= 0):
        raise ValueError(f"h={h!r}: give a finite number of at least 0.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"learning_rate={learning_rate!r}: give a positive number.")
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"quantiles={quantiles!r}: give two numbers in [0, 1], the lower one first.")


def _whole(number: Any, least: int) -> bool:
    return isinstance(number, Integral) and int(number) >= least
