"""Distances between two sets of samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ..inputs.packages import optional_packages


@torch.no_grad()
def earth_movers_distance(real: Tensor, generated: Tensor) -> float:
    """Return the exact Wasserstein-1 distance between two equally large samples.

    It is computed by linear assignment.

    min over permutations s of mean_i ||x_i - y_s(i)||_2. The cost grows with the cube of the size: about a second
    for 2,000. Two samples of one distribution have a positive distance too, larger in higher dimensions.

    Args:
        real: of shape (n, ...).
        generated: of the same shape.

    Raises:
        ValueError: the shapes differ, there is no sample, or a value is not finite.
        ImportError: scipy is missing.

    Examples:
        >>> earth_movers_distance(torch.tensor([[0.0], [3.0]]), torch.tensor([[2.0], [1.0]]))
        1.0
    """
    with optional_packages("the earth mover's distance", "gan"):
        from scipy.optimize import linear_sum_assignment
    if real.shape != generated.shape or real.ndim == 0 or len(real) == 0:
        raise ValueError(
            f"real samples of shape {tuple(real.shape)}, generated of {tuple(generated.shape)}: give equally many "
            "of each, at least one."
        )
    x, y = (samples.detach().cpu().double().reshape(len(samples), -1) for samples in (real, generated))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("samples contain NaN or infinity: give finite samples.")
    cost = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


@torch.no_grad()
def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Frechet distance between two samples' normal approximations.

    They are the normal distributions with the samples' means and covariances. The squared distance is

    ||m_1 - m_2||^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)).

    It is squared as in the Frechet inception distance (Heusel et al. 2017, arXiv 1706.08500). That one uses features of
    an Inception network. With fewer samples than features, it is biased
    and depends on the sample size.

    Args:
        real: features of shape (n, m), n at least 2.
        generated: of shape (k, m).

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.

    Examples:
        >>> x = torch.tensor([[-1.0], [1.0]])
        >>> round(frechet_distance(x, 2 * x + 3), 6)  # 3^2 + (sqrt(8) - sqrt(2))^2
        11.0
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"features of shape {tuple(real.shape)} and {tuple(generated.shape)}: give (n, m) and (k, m), one row a "
            "sample."
        )
    if min(len(real), len(generated)) < 2:
        raise ValueError("a covariance needs at least two samples: give two or more of each.")
    x, y = (features.detach().cpu().double() for features in (real, generated))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("features contain NaN or infinity: give finite features.")
    shift = (x.mean(0) - y.mean(0)).square().sum()
    real_covariance, generated_covariance = (torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]) for rows in (x, y))
    # S_1 S_2 has the eigenvalues of the symmetric R S_2 R with R^2 = S_1.
    values, vectors = torch.linalg.eigh(real_covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross_trace = torch.linalg.eigvalsh(root @ generated_covariance @ root).clamp(min=0).sqrt().sum()
    return float(shift + real_covariance.trace() + generated_covariance.trace() - 2 * cross_trace)
