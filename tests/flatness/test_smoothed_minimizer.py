"""Loss plus lambda kappa on separable labels: without smoothing no minimizer, with it a finite one.

The statements and their proofs stand in docs/smoothing.md.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_fam import RelativeFlatness

STRENGTH = 0.01


def clusters(overlap: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.tensor([[2.0, 0.0], [-1.0, 2.0], [-1.0, -2.0]]).double()
    y = torch.arange(60) % 3
    x = centers[y] + 0.3 * torch.randn(60, 2, generator=generator).double()
    if overlap:
        y[:12] = torch.randint(3, (12,), generator=generator)
    return x, y


def trained(smoothing: float, *, overlap: bool = False, start: float = 0.0, tolerance: float = 1e-10) -> dict[str, Any]:
    """The head after L-BFGS on loss + lambda kappa, begun at a random one of the size ``start``."""
    x, y = clusters(overlap)
    head = nn.Linear(2, 3).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(start * torch.randn_like(parameter))
    flatness = RelativeFlatness(nn.Sequential(head), smoothing=smoothing)
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=3000, tolerance_grad=tolerance, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        with flatness.capture():
            loss = F.cross_entropy(head(x), y)
        total = loss + STRENGTH * flatness(loss)
        total.backward()
        return total

    optimizer.step(closure)
    total = closure().detach()
    centered = head.weight.detach() - head.weight.detach().mean(0)
    gradient = torch.cat([p.grad.flatten() for p in head.parameters()]).abs().max()
    return {"objective": total, "weight": centered, "gradient": gradient}


def test_without_smoothing_confidence_runs_away() -> None:
    """Begun behind the barrier, the objective falls towards zero and the weights grow, the further the longer."""
    torch.manual_seed(0)
    ends = [trained(0.0, start=start) for start in (30.0, 300.0)]
    assert all(end["objective"] < 1e-3 for end in ends)
    assert all(end["weight"].norm() > 15 for end in ends)


@pytest.mark.parametrize(("smoothing", "overlap"), [(0.1, False), (0.01, False), (0.1, True), (0.0, True)])
def test_a_finite_minimizer(smoothing: float, overlap: bool) -> None:
    torch.manual_seed(1)
    ends = [trained(smoothing, overlap=overlap, start=start) for start in (0.0, 1.0)]
    for end in ends:
        assert end["gradient"] < 1e-7
        torch.testing.assert_close(end["objective"], ends[0]["objective"], rtol=1e-6, atol=0)
        torch.testing.assert_close(end["weight"], ends[0]["weight"], rtol=1e-3, atol=1e-4)
    if smoothing:
        x, _ = clusters(overlap)
        bound = ends[0]["objective"] / (STRENGTH * smoothing * x.square().sum(-1).mean())
        assert ends[0]["weight"].square().sum(-1).mean() <= bound
