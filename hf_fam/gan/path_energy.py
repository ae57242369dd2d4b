"""Energies of paths between two latent codes."""

from __future__ import annotations

import torch
from torch import Tensor

from .safe_norm import row_norms

CRITIC, PULLBACK, CONFORMAL, FEATURE, DISC = "critic", "pullback", "conformal", "feature", "disc"
LINEAR, SLERP = "linear", "slerp"
ENERGIES = (CRITIC, PULLBACK, CONFORMAL, FEATURE, DISC, LINEAR, SLERP)
SCORED = (CRITIC, CONFORMAL, DISC)


def step_lengths(outputs: Tensor) -> Tensor:
    """Return ||x_{i+1} - x_i|| of paths (pairs, n, ...), as (pairs, n - 1)."""
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    steps = (outputs[:, 1:] - outputs[:, :-1]).flatten(2)
    return row_norms(steps.flatten(0, 1)).reshape(steps.shape[:2])


def realism(scores: Tensor, score_range: tuple[float, float]) -> Tensor:
    """Return the realism d of scores, between .01 and .99.

    d = clip((clip(c, low, high) - off) / (high - off), .01, .99) with off = low - 10.

    The formula is that of the released code of arXiv 2203.01035. Scores below ``low`` have no gradient.
    """
    low, high = score_range
    off = low - 10
    return ((scores.clamp(low, high) - off) / (high - off)).clamp(0.01, 0.99)


def path_energy(
    energy: str, outputs: Tensor, scores: Tensor | None, score_range: tuple[float, float] | None, h: float
) -> Tensor:
    """Return the energy of each path.

    For P values a sample, s_i = ||x_{i+1} - x_i||^2 / P. dbar_i is the geometric mean of the realism of i and i + 1.

    - ``"critic"``: sum (h / dbar_i + sqrt(s_i))^2
    - ``"conformal"``: sum (1 + h / dbar_i)^2 s_i
    - ``"disc"``: sum 1 / dbar_i^2
    - else: sum s_i

    Args:
        energy: its name.
        outputs: (pairs, n, ...).
        scores: (pairs, n), for ``"critic"``, ``"conformal"`` and ``"disc"``.
        score_range: lowest and highest score, for the same three.
        h: weight of the score, for the first two.

    Returns:
        (pairs,).
    """
    roots = step_lengths(outputs) / outputs[0, 0].numel() ** 0.5
    if scores is None or score_range is None or energy not in SCORED:
        return roots.square().sum(1)
    d = realism(scores, score_range)
    products = d[:, 1:] * d[:, :-1]
    if energy == DISC:
        return products.reciprocal().sum(1)
    toll = h / products.sqrt()
    per_step = toll + roots if energy == CRITIC else (1 + toll) * roots
    return per_step.square().sum(1)
