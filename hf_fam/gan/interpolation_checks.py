"""Checks of the arguments of `interpolate`."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import Tensor

from ..inputs.numbers import LARGEST_WHOLE, as_number
from ..inputs.text import quote
from .latent_curve import CURVES
from .path_energy import ENERGIES, FEATURE, SCORED

# The name of a path in the result. It is no energy.
LINEAR_IN_SAMPLE = "linear_in_sample"


def check_arguments(
    z0: Tensor, z1: Tensor, scorer: Any, features: Any, energy: str, curve: str, points: int, degree: int, h: float,
    steps: int, learning_rate: float, chunk_size: int | None, calibration: Tensor | int,
    quantiles: tuple[float, float],
) -> None:  # fmt: skip
    """Refuse arguments of `interpolate` that do not fit.

    Raises:
        ValueError: names the argument, what was given and what to give.
        TypeError: a code is no tensor.
    """
    for name, value, choices in (("energy", energy, ENERGIES), ("curve", curve, CURVES)):
        if not isinstance(value, str) or value not in choices:
            is_path_of_result = isinstance(value, str) and value == LINEAR_IN_SAMPLE
            hint = ', or read `linear_in_sample` of the result of energy="linear"' if is_path_of_result else ""
            raise ValueError(f"{name}={quote(value)}: give one of {', '.join(map(repr, choices))}{hint}.")
    for name, z in (("z0", z0), ("z1", z1)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name}={quote(z)}: give a tensor of latent codes.")
    if z0.shape != z1.shape or z0.ndim < 2 or not len(z0) or not z0.is_floating_point() or z0.dtype != z1.dtype:
        raise ValueError(
            f"z0 is {z0.dtype} of shape {tuple(z0.shape)}, z1 {z1.dtype} of {tuple(z1.shape)}: give floating-point "
            "codes of the same type and shape (pairs, ...). Give a single pair as z0[None], z1[None]."
        )
    for name, z in (("z0", z0), ("z1", z1)):
        if not z.isfinite().all():
            raise ValueError(f"{name} has values that are not finite: give finite latent codes.")
    if energy in SCORED and scorer is None:
        raise ValueError(f'energy="{energy}" needs a scorer, such as the critic: give scorer=..., or use "pullback".')
    if energy == FEATURE and features is None:
        raise ValueError('energy="feature" needs a function of the samples: give features=...')
    for name, number, least in (("points", points, 3), ("degree", degree, 2), ("steps", steps, 0)):
        if not _is_whole_number(number, least):
            raise ValueError(f"{name}={quote(number)}: give a whole number of at least {least}.")
    if chunk_size is not None and not _is_whole_number(chunk_size, 1):
        raise ValueError(f"chunk_size={quote(chunk_size)}: give a whole number of at least 1, or None.")
    if isinstance(calibration, Tensor):
        if calibration.shape[1:] != z0.shape[1:] or len(calibration) < 2 or not calibration.isfinite().all():
            raise ValueError(
                f"calibration of shape {tuple(calibration.shape)}: give at least 2 finite latent codes shaped as z0, "
                f"(n, {', '.join(map(str, z0.shape[1:]))})."
            )
    elif not _is_whole_number(calibration, 2):
        raise ValueError(f"calibration={quote(calibration)}: give latent codes, or a whole number of at least 2.")
    low, high = map(as_number, quantiles) if isinstance(quantiles, (tuple, list)) and len(quantiles) == 2 else (1, 0)
    if not 0 <= low < high <= 1:
        raise ValueError(f"quantiles={quote(quantiles)}: give two numbers in [0, 1], the lower one first.")


def _is_whole_number(number: Any, least: int) -> bool:
    return isinstance(number, Integral) and least <= int(number) <= LARGEST_WHOLE
