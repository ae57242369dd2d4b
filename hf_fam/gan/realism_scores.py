"""Scores of how realistic samples are, each fitted to real samples; larger is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The distance is to this nearest real sample, because the very nearest may be an outlier.
NEIGHBOR = 5
# Principal directions of the features that the density uses.
COMPONENTS = 32
BANDWIDTHS = tuple(2.0 ** (power / 2) for power in range(-6, 5))
# Penalty on the squared weights of the logistic regression.
RIDGE = 1e-3
# Rows that are compared with all real samples at once.
ROWS = 512

Score = Callable[[Tensor], Tensor]


def neighbor_score(real: Tensor) -> Score:
    """Return the score -(distance to the fifth nearest real row).

    Args:
        real: rows of shape (n, m), n at least 5.
    """

    def score(rows: Tensor) -> Tensor:
        distances = [torch.cdist(part, real).kthvalue(NEIGHBOR, 1).values for part in rows.split(ROWS)]
        return -torch.cat(distances)

    return score


def density_score(real: Tensor) -> Score:
    """Return the logarithm of a normal kernel density estimate, up to a constant.

    The rows are projected to their first 32 principal components and scaled to variance 1. The bandwidth is chosen from
    a grid: one half of the rows is most likely under the density of the other half.

    Args:
        real: rows of shape (n, m).
    """
    mean = real.mean(0)
    directions, deviations = _principal_components(real - mean, COMPONENTS)
    whiten = directions / deviations
    points = (real - mean) @ whiten
    fitted, validation = points[0::2], points[1::2]
    bandwidth = max(BANDWIDTHS, key=lambda width: float(_log_density(validation, fitted, width).mean()))
    return lambda rows: _log_density((rows - mean) @ whiten, points, bandwidth)


def _principal_components(centered: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal directions (m, k) and standard deviations along them (k,); k is at most ``most``."""
    _, singular, right = torch.linalg.svd(centered, full_matrices=False)
    deviations = singular / math.sqrt(len(centered) - 1)
    kept = (deviations > 1e-6 * deviations[0]).nonzero().flatten()[:most]
    return right[kept].T, deviations[kept]


def _log_density(rows: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    constant = rows.shape[1] * math.log(bandwidth)
    parts = [
        (-0.5 * (torch.cdist(part, points) / bandwidth).square()).logsumexp(1) - constant for part in rows.split(ROWS)
    ]
    return torch.cat(parts)


def discriminator_score(real: Tensor, generated: Tensor) -> Score:
    """Return the log-odds that a row is real, by logistic regression with a small ridge penalty.

    Both classes count the same, whatever their numbers of rows.

    Args:
        real: rows of shape (n, m).
        generated: rows of shape (k, m).
    """
    mean, deviation = real.mean(0), real.std(0).clamp(min=1e-6)
    rows = (torch.cat([real, generated]) - mean) / deviation
    signs = torch.cat([rows.new_ones(len(real)), -rows.new_ones(len(generated))])
    shares = torch.cat([rows.new_full((len(part),), 0.5 / len(part)) for part in (real, generated)])
    weight, bias = (torch.zeros(size, dtype=rows.dtype, device=rows.device) for size in (rows.shape[1], 1))
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(
        parameters, max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        value = shares @ torch.nn.functional.softplus(-signs * (rows @ weight + bias)) + RIDGE * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    weight, bias = weight.detach(), bias.detach()
    return lambda samples: (samples - mean) / deviation @ weight + bias


def confidence(logits: Tensor) -> Tensor:
    """Return minus the entropy of a classifier's probabilities, in nats.

    Args:
        logits: of shape (n, classes).
    """
    logarithms = logits.log_softmax(1)
    return (logarithms.exp() * logarithms).sum(1)


def reconstruction(samples: Tensor, rebuilt: Any) -> Tensor:
    """Return -(root mean squared error) of an autoencoder's output.

    Args:
        samples: of shape (n, ...).
        rebuilt: of the same shape, or an object with ``sample``.

    Raises:
        ValueError: the shapes differ.
    """
    rebuilt = rebuilt if isinstance(rebuilt, Tensor) else getattr(rebuilt, "sample", rebuilt)
    if not isinstance(rebuilt, Tensor) or rebuilt.shape != samples.shape:
        description = f"shape {tuple(rebuilt.shape)}" if isinstance(rebuilt, Tensor) else type(rebuilt).__name__
        raise ValueError(
            f"the autoencoder returned {description} for samples of shape {tuple(samples.shape)}: it must return "
            "samples of the same shape."
        )
    return -(rebuilt.double() - samples.double()).flatten(1).square().mean(1).sqrt()


def is_constant(values: Tensor) -> bool:
    """Return True if values do not vary, up to rounding."""
    return not float(values.std()) > 1e-9 * max(float(values.abs().max()), 1e-9)
