"""The baselines of the released code of arXiv 2203.01035: ``disc`` and ``linear_in_sample``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from hf_fam.gan import interpolate

RANGE = (-8.0, 0.0)


def decoder() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (2, 3))).double()


def score(x: Tensor) -> Tensor:
    return -x.flatten(1).square().sum(1)


def test_disc_is_the_sum_of_inverse_squares_of_the_realism() -> None:
    """By a loop over the samples that came out, as the released code has it, without the length."""
    torch.manual_seed(2)
    z0, z1 = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    settings = {"scorer": score, "score_range": RANGE, "points": 6, "steps": 40, "learning_rate": 0.02}
    found = interpolate(decoder(), z0, z1, energy="disc", resample=False, **settings)
    for pair in range(2):
        shifted = [(min(max(c, RANGE[0]), RANGE[1]) - (RANGE[0] - 10)) for c in found.scores[pair].tolist()]
        d = [min(max(value / (RANGE[1] - (RANGE[0] - 10)), 0.01), 0.99) for value in shifted]
        expected = sum(1 / math.exp(0.5 * (math.log(d[i + 1]) + math.log(d[i]))) ** 2 for i in range(5))
        assert found.energy[pair].item() == pytest.approx(expected, rel=1e-12)
    assert (found.energy < found.start_energy).all() and (found.mean_score > found.linear.mean_score).all()
    other = interpolate(decoder(), z0, z1, energy="disc", h=7.0, resample=False, **settings)
    assert torch.equal(found.latents, other.latents)  # h weighs the score against length, and there is no length


def test_disc_finds_the_minimum_of_its_energy() -> None:
    """Of a single free point in the plane, by scipy."""
    start = torch.tensor([[-1.0, 0.0]]).double()
    bell = lambda x: -((x - torch.tensor([0.3, 0.9])) ** 2).sum(1)  # noqa: E731
    found = interpolate(
        lambda z: z, start, -start, scorer=bell, energy="disc", curve="nodes", points=3, score_range=(-9.0, 1.0),
        steps=800, learning_rate=0.01, resample=False,
    )  # fmt: skip

    def energy(point: np.ndarray) -> float:
        scores = [-(((np.array(x) - [0.3, 0.9]) ** 2).sum()) for x in ([-1, 0], point, [1, 0])]
        d = [(c + 19) / 20 for c in scores]
        return 1 / (d[0] * d[1]) + 1 / (d[1] * d[2])

    best = minimize(energy, [0.0, 0.0]).x
    np.testing.assert_allclose(found.latents[0, 1], best, atol=1e-3)


@pytest.mark.parametrize("with_scores", [True, False])
def test_the_cross_fade_is_straight_between_samples(with_scores: bool) -> None:
    torch.manual_seed(4)
    z0, z1 = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    make = decoder()
    found = interpolate(make, z0, z1, scorer=score if with_scores else None, energy="linear", points=7, chunk_size=4)
    fade = found.linear_in_sample
    with torch.no_grad():
        start, end = make(z0), make(z1)
    for i in range(7):
        torch.testing.assert_close(fade.samples[:, i], start + (end - start) * i / 6, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fade.length, (end - start).flatten(1).norm(dim=1))
    assert (fade.length <= found.linear.length).all()  # no path between two samples is shorter
    if with_scores:
        torch.testing.assert_close(fade.scores, torch.stack([score(part) for part in fade.samples]))
        torch.testing.assert_close(fade.worst_score, fade.scores.amin(1))
    else:
        assert fade.scores is None and fade.worst_score is None
    assert not hasattr(fade, "latents") and not fade.samples.requires_grad


def test_an_energy_of_that_name_is_refused_with_the_way_to_get_it() -> None:
    z = torch.zeros(1, 4).double()
    with pytest.raises(ValueError, match="energy='linear_in_sample'.*read `linear_in_sample` of the result"):
        interpolate(decoder(), z, z, energy="linear_in_sample")
    with pytest.raises(ValueError, match='energy="disc" needs a scorer'):
        interpolate(decoder(), z, z, energy="disc")
