"""A one-dimensional problem whose optima are known: real {0, 3}, generated {1, 2}, each with probability 1/2, W1 = 1.

The slopes on [0, 1], [1, 2] and [2, 3] are free. Points on the lines fall there with probabilities 3/8, 1/4, 3/8.
The critic's estimate is (c - a) / 2 for slopes a, b, c, so that at the optimum c = -a = 1 + 2 / (3 lambda). With the
two-sided penalty and lambda > 2/3 the slope of the wrong sign, 1 - 2 / (3 lambda), is an optimum as well.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from hf_fam.gan import LinePoints, gradient_penalty

REAL, GENERATED = torch.tensor([[0.0], [3.0]]).double(), torch.tensor([[1.0], [2.0]]).double()
POINTS = torch.tensor([0.5] * 3 + [1.5] * 2 + [2.5] * 3).double()[:, None]


class Slopes(nn.Module):
    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes = nn.Parameter(slopes)

    def forward(self, x: Tensor) -> Tensor:
        return ((x - torch.arange(3)).clamp(0, 1) * self.slopes).sum(1)


def optimum(start: Tensor, strength: float, side: str) -> tuple[Tensor, float]:
    """Slopes and estimate after gradient ascent. A slope of the wrong sign needs up to 430 steps to turn."""
    critic = Slopes(start)
    ascent = torch.optim.SGD(critic.parameters(), lr=1 / strength)
    for _ in range(500):
        ascent.zero_grad()
        loss = critic(GENERATED).mean() - critic(REAL).mean()
        (loss + strength * gradient_penalty(critic, POINTS, side=side)).backward()
        ascent.step()
    return critic.slopes.detach(), float((critic(REAL).mean() - critic(GENERATED).mean()).detach())


def starts() -> list[Tensor]:
    """Of both signs on each of the outer intervals."""
    signs = itertools.product((-1.0, 1.0), repeat=2)
    return [torch.tensor([one, 0.3, other]).double() * (0.5 + torch.rand(3).double()) for one, other in signs]


@pytest.mark.parametrize(
    ("strength", "expected"), [(0.1, 7.67), (1, 1.667), (10, 1.067), (100, 1.007)], ids=lambda value: f"{value:g}"
)
def test_one_sided_finds_its_optimum_from_every_start(strength: float, expected: float) -> None:
    for start in starts():
        slopes, estimate = optimum(start, strength, "one")
        assert estimate == pytest.approx(1 + 2 / (3 * strength), abs=1e-9)
        assert estimate == pytest.approx(expected, abs=0.005)
        assert slopes[2].item() == pytest.approx(1 + 2 / (3 * strength)) and slopes[0] < -1


@pytest.mark.parametrize(("strength", "average"), [(1, 0.667), (10, 0.067), (100, 0.0067)])
def test_two_sided_has_optima_of_the_wrong_sign(strength: float, average: float) -> None:
    excess, results = 2 / (3 * strength), []
    for start in starts():
        slopes, estimate = optimum(start, strength, "two")
        for slope, right, begun in ((slopes[2], 1, start[2]), (-slopes[0], 1, -start[0])):
            expected = 1 + excess if begun > 0 else -(1 - excess)
            assert slope.item() == pytest.approx(right * expected, abs=1e-9)
        results.append(estimate)
    assert sum(results) / 4 == pytest.approx(excess, abs=1e-9)
    assert sum(results) / 4 == pytest.approx(average, abs=0.0005)
    assert max(results) == pytest.approx(1 + excess)  # the best optimum is the same


def test_two_sided_below_two_thirds_has_one_optimum() -> None:
    for start in starts():
        assert optimum(start, 0.1, "two")[1] == pytest.approx(1 + 2 / 0.3, abs=1e-9)


def test_line_points_fall_where_they_should() -> None:
    torch.manual_seed(0)
    n = 80_000
    points = LinePoints()(REAL[torch.randint(2, (n,))], GENERATED[torch.randint(2, (n,))])
    counts = torch.histc(points, 3, 0, 3) / n
    for share, expected in zip(counts.tolist(), (0.375, 0.25, 0.375), strict=True):
        assert abs(share - expected) < 5 * math.sqrt(0.25 / n)
