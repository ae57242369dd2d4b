"""Formulas that docs/ states and no estimator uses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hf_fam.flatness.estimators.dense import dense_flatness


def test_multiple_choice() -> None:
    """docs/closed-form.md: one weight row is shared by the choices of an item."""
    items, choices, m = 5, 4, 3
    phi, labels = torch.randn(items, choices, m, dtype=torch.float64), torch.randint(0, choices, (items,))
    w = torch.randn(1, m, dtype=torch.float64, requires_grad=True)
    logits = (phi @ w.T).squeeze(-1)
    p = logits.softmax(1).detach()
    mean = torch.einsum("ic,icm->im", p, phi)
    variance = torch.einsum("ic,icm->i", p, (phi - mean[:, None]).square())
    expected = w.detach().square().sum() * variance.mean()
    torch.testing.assert_close(dense_flatness(F.cross_entropy(logits, labels), w).kappa.detach(), expected)


def test_weight_sketch() -> None:
    """docs/closed-form.md: the mean over all sign vectors is the variance of the rows."""
    classes, m = 6, 4
    w, p = torch.randn(classes, m, dtype=torch.float64), torch.randn(classes, dtype=torch.float64).softmax(0)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * m)
    values = signs @ w.T
    sketched = (values.square() @ p - (values @ p).square()).mean()
    expected = p @ w.square().sum(1) - (p @ w).square().sum()
    torch.testing.assert_close(sketched, expected)


def test_measures_of_a_rotated_and_of_a_shifted_head() -> None:
    """docs/invariances.md: the rotation leaves all three as they are, the added vector kappa alone."""
    phi, labels = torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 3, (9,))
    w = torch.randn(3, 5, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))

    def measures(phi: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        w = w.clone().requires_grad_()
        found = dense_flatness(F.cross_entropy(phi @ w.T, labels), w)
        return torch.stack([found.kappa, found.kappa_max, found.layerwise]).detach()

    before = measures(phi, w)
    torch.testing.assert_close(measures(phi @ rotation.T, w @ rotation.T), before)
    after = measures(phi, w + 10)
    torch.testing.assert_close(after[0], before[0], rtol=1e-8, atol=0)
    assert (after[1:] > 2 * before[1:]).all()
