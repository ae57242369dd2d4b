"""Where the samplers put their points."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_fam.gan import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from hf_fam.gan.training_args import POINTS
from support.gans import wgan_arguments

SAMPLERS = [LinePoints(), LocalPoints(), LocalPoints("both"), RealPoints(), GeneratedPoints()]


def test_line_has_one_alpha_a_sample() -> None:
    real, generated = torch.randn(50, 2, 3).double(), torch.randn(50, 2, 3).double()
    alpha = ((LinePoints()(real, generated) - generated) / (real - generated)).flatten(1)
    torch.testing.assert_close(alpha, alpha[:, :1].expand_as(alpha))
    assert alpha.min() >= 0 and alpha.max() <= 1 and alpha[:, 0].std() > 0.2


@pytest.mark.parametrize("around", ["real", "generated", "both"])
def test_local_points_stay_near_their_samples(around: str) -> None:
    torch.manual_seed(0)
    real, generated = 3 * torch.randn(2000, 4).double(), 10 + torch.randn(2000, 4).double()
    points = LocalPoints(around, radius=0.5)(real, generated)
    centers = {"real": [real], "generated": [generated], "both": [real, generated]}[around]
    assert len(points) == 2000 * len(centers)
    for near, center in zip(points.split(2000), centers, strict=True):
        moved = (near - center) / (0.5 * center.std(correction=0))
        assert 0.95 < moved.abs().max() <= 1
        # E[alpha^2] E[delta^2] = 1/9, and alpha is shared by a sample's dimensions: E[alpha^4] E[delta^2]^2 = 1/45.
        squares = moved.square()
        assert squares.mean().item() == pytest.approx(1 / 9, rel=0.1)
        assert (squares[:, 0] * squares[:, 1]).mean().item() == pytest.approx(1 / 45, rel=0.2)


def test_real_and_generated_are_the_samples() -> None:
    real, generated = torch.randn(3, 2), torch.randn(3, 2)
    assert torch.equal(RealPoints()(real, generated), real)
    assert torch.equal(GeneratedPoints()(real, generated), generated)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_they_are_detached_and_seeded(sampler: LinePoints) -> None:
    real, generated = torch.randn(3, 2), torch.randn(3, 2, requires_grad=True)
    before = torch.get_rng_state()
    one, two = (sampler(real, generated, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and not one.requires_grad
    assert torch.equal(before, torch.get_rng_state())
    assert sampler(real[:1], generated[:1]).isfinite().all()  # a batch of one


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_generated_samples_may_be_in_half_precision(sampler: LinePoints, half: torch.dtype) -> None:
    """As under autocast."""
    points = sampler(torch.randn(4, 3), torch.randn(4, 3).to(half))
    assert points.dtype == (half if isinstance(sampler, GeneratedPoints) else torch.float32)


@pytest.mark.parametrize("sampler", SAMPLERS[:3], ids=repr)
def test_unequal_batches_are_refused(sampler: LinePoints) -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(4, 2\)"):
        sampler(torch.randn(3, 2), torch.randn(4, 2))


def test_names_in_the_arguments(tmp_path: Path) -> None:
    """Every name is its sampler, and the radius is given to those that have one."""
    named = {
        "line": ({}, LinePoints()),
        "local": ({"penalty_radius": 0.5}, LocalPoints("real", 0.5)),
        "local_generated": ({"penalty_radius": 0.25}, LocalPoints("generated", 0.25)),
        "local_both": ({"penalty_radius": 2.0}, LocalPoints("both", 2.0)),
        "real": ({}, RealPoints()),
        "generated": ({}, GeneratedPoints()),
    }
    assert set(named) == set(POINTS)
    for name, (given, expected) in named.items():
        result = wgan_arguments(tmp_path, penalty_points=name, **given).sampler
        assert type(result) is type(expected) and result == expected, name


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="around='fake'"):
        LocalPoints("fake")
    with pytest.raises(ValueError, match="radius=0"):
        LocalPoints(radius=0)
