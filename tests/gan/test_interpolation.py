"""interpolate: plain references of the energies, curves, and what does not depend on what."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from hf_fam.gan import interpolate
from hf_fam.gan.latent_curve import LatentCurve, slerp
from hf_fam.gan.path_energy import path_energy

SIGMA = 0.1
LEFT, RIGHT = torch.tensor([[-1.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
QUICK = {"steps": 3, "calibration": 64}


def plane(z: Tensor) -> Tensor:
    return z


def ring(x: Tensor) -> Tensor:
    """The logarithm of a ring's density, up to a constant."""
    return -((x.norm(dim=1) - 1) ** 2) / (2 * SIGMA**2)


def decoder() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Unflatten(1, (2, 3))).double()


def score(x: Tensor) -> Tensor:
    return -x.flatten(1).square().sum(1)


def test_energies_by_loops() -> None:
    outputs, scores = torch.randn(2, 5, 3, 2).double(), 5 * torch.randn(2, 5).double()
    low, high, h = -4.0, 3.0, 0.3
    for pair in range(2):
        totals = {"critic": 0.0, "conformal": 0.0, "pullback": 0.0, "disc": 0.0}
        d = [min(max((min(max(float(c), low), high) - low + 10) / (high - low + 10), 0.01), 0.99) for c in scores[pair]]
        for i in range(4):
            s = float((outputs[pair, i + 1] - outputs[pair, i]).pow(2).sum()) / 6
            toll = h / math.sqrt(d[i] * d[i + 1])
            totals["critic"] += (toll + math.sqrt(s)) ** 2
            totals["conformal"] += (1 + toll) ** 2 * s
            totals["pullback"] += s
            totals["disc"] += 1 / (d[i] * d[i + 1])
        for energy, total in totals.items():
            got = path_energy(energy, outputs, scores, (low, high), h)[pair]
            assert got.item() == pytest.approx(total, rel=1e-12), energy


@pytest.mark.parametrize("energy", ["critic", "conformal", "pullback", "disc"])
def test_gradients_of_the_energies(energy: str) -> None:
    """Inside the range of the scores, where they have one."""
    outputs, scores = torch.randn(2, 4, 3).double(), torch.rand(2, 4).double()
    if energy != "critic":  # sqrt(s) has a corner where two samples are the same
        outputs[0, 2] = outputs[0, 1]
    given = (outputs.requires_grad_(), scores.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, c: path_energy(energy, x, c, (-1.0, 2.0), 0.3), given)


def test_polynomial_is_the_papers() -> None:
    """Its coefficients c_0 and c_1 as theory has them, on [1, 2]."""
    z0, z1, c = torch.randn(1, 3).double(), torch.randn(1, 3).double(), torch.randn(1, 3, 3).double()
    t = torch.linspace(0, 1, 7).double()[None]
    c1 = z1[0] - z0[0] - sum((2**k - 1) * c[0, k - 2] for k in (2, 3, 4))
    c0 = 2 * z0[0] - z1[0] + sum((2**k - 2) * c[0, k - 2] for k in (2, 3, 4))
    u = 1 + t[0][:, None]
    expected = c0 + c1 * u + sum(c[0, k - 2] * u**k for k in (2, 3, 4))
    torch.testing.assert_close(LatentCurve("polynomial", 4, 7, False).at(t, z0, z1, c)[0], expected)


def test_cubic_is_scipys_natural_spline() -> None:
    c, t = torch.randn(1, 4, 2).double(), torch.rand(9).double().sort().values
    t[0], t[-1] = 0, 1
    zero = torch.zeros(1, 2).double()
    got = LatentCurve("cubic", 5, 9, False).at(t[None], zero, zero, c)[0]
    values = np.concatenate([np.zeros((1, 2)), c[0].numpy(), np.zeros((1, 2))])
    expected = CubicSpline(np.linspace(0, 1, 6), values, bc_type="natural")(t.numpy())
    torch.testing.assert_close(got, torch.from_numpy(expected))


def test_nodes_are_free() -> None:
    c, zero = torch.randn(1, 5, 2).double(), torch.zeros(1, 2).double()
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[None]
    torch.testing.assert_close(LatentCurve("nodes", 2, 7, False).at(t, zero, zero, c)[0, 1:-1], c[0])


def test_slerp() -> None:
    t = torch.linspace(0, 1, 11).double()[None]
    one, other = torch.randn(1, 5).double(), torch.randn(1, 5).double()
    one, other = 2 * one / one.norm(), 2 * other / other.norm()
    angle = torch.arccos((one * other).sum() / 4)
    textbook = ((1 - t[0][:, None]) * angle).sin() * one + (t[0][:, None] * angle).sin() * other
    torch.testing.assert_close(slerp(t, one, other)[0], textbook / angle.sin())
    for end in (-one, one, 3 * one):  # opposite, the same, the same direction
        path = slerp(t, one, end)
        radius = torch.lerp(one.norm(), end.norm(), t[0])
        assert torch.equal(path[0, -1], end[0])
        torch.testing.assert_close(path[0].norm(dim=1), radius)


@pytest.mark.parametrize("curve", ["polynomial", "cubic", "nodes"])
@pytest.mark.parametrize("energy", ["critic", "conformal", "pullback", "feature", "disc", "linear", "slerp"])
def test_every_energy_and_curve(energy: str, curve: str) -> None:
    z0, z1 = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    make = decoder()
    features = (lambda x: x.flatten(1)[:, :3]) if energy == "feature" else None
    before = torch.get_rng_state()
    result = interpolate(
        make, z0, z1, scorer=score, features=features, energy=energy, curve=curve, points=6, steps=20,
        learning_rate=0.02, calibration=64, sphere=True, resample=False,
    )  # fmt: skip
    assert torch.equal(before, torch.get_rng_state())
    assert result.latents.shape == (3, 6, 4) and result.samples.shape == (3, 6, 2, 3)
    assert torch.equal(result.latents[:, 0], z0) and torch.equal(result.latents[:, -1], z1)
    torch.testing.assert_close(result.samples[1], make(result.latents[1]).detach())
    torch.testing.assert_close(result.scores[2], score(result.samples[2]))
    torch.testing.assert_close(result.worst_score, result.scores.min(1).values)
    torch.testing.assert_close(result.mean_score, result.scores.mean(1))
    torch.testing.assert_close(result.length[0], result.samples[0].diff(dim=0).flatten(1).norm(dim=1).sum())
    assert not result.samples.requires_grad and all(p.grad is None for p in make.parameters())
    if energy in ("linear", "slerp"):
        assert result.energy is None and torch.equal(result.latents, getattr(result, energy).latents)
    else:
        assert (result.energy <= result.start_energy).all() and (result.energy < result.start_energy).any()


def test_a_pair_does_not_depend_on_the_others_nor_on_chunks() -> None:
    z0, z1 = torch.randn(4, 4).double(), torch.randn(4, 4).double()
    settings = {"scorer": score, "steps": 30, "learning_rate": 0.02, "score_range": (-8.0, 0.0), "points": 7}
    together = interpolate(decoder(), z0, z1, **settings)
    again = interpolate(decoder(), z0, z1, **settings)
    assert torch.equal(together.latents, again.latents) and torch.equal(together.scores, again.scores)
    chunked = interpolate(decoder(), z0, z1, chunk_size=5, **settings)
    torch.testing.assert_close(chunked.latents, together.latents)
    alone = interpolate(decoder(), z0[2:3], z1[2:3], **settings)
    torch.testing.assert_close(alone.latents[0], together.latents[2])
    other = interpolate(decoder(), z0, z1, seed=1, **settings)
    assert not torch.equal(other.latents, together.latents)


def test_the_best_iterate_is_kept() -> None:
    """With a learning rate that throws the path about, the energy returned is that of the curve returned."""
    result = interpolate(
        plane, LEFT, RIGHT, scorer=ring, learning_rate=2.0, steps=25, score_range=(-50.0, 0.0), resample=False
    )
    assert result.energy <= result.start_energy
    scores = ring(result.samples[0])[None]
    torch.testing.assert_close(path_energy("critic", result.samples, scores, (-50.0, 0.0), 0.2), result.energy)


def test_the_best_of_all_iterates_is_kept_for_each_pair() -> None:
    """A longer search begins like a shorter one, so its energies are the running minima."""
    z0, z1 = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    settings = {"scorer": score, "score_range": (-8.0, 0.0), "points": 6, "learning_rate": 0.3}
    energies = torch.stack([interpolate(decoder(), z0, z1, steps=k, **settings).energy for k in range(12)])
    assert torch.equal(energies, energies.cummin(0).values)
    stayed = energies[1:] == energies[:-1]
    assert stayed.any() and not stayed.all(0).any()  # some steps went up, and every pair has found something
    assert (stayed.any(1) != stayed.all(1)).any()  # not all pairs at the same step


def test_scores_are_calibrated_by_quantiles_of_generated_samples() -> None:
    make, z = decoder(), torch.randn(1, 4).double()
    codes = 3 * torch.randn(333, 4).double()
    settings = {"scorer": score, "points": 4, "steps": 1, "quantiles": (0.1, 0.8)}
    result = interpolate(make, z, -z, calibration=codes, **settings)
    expected = np.quantile(score(make(codes)).detach().numpy(), (0.1, 0.8))
    assert result.score_range == pytest.approx(tuple(expected), rel=1e-12)
    drawn = torch.randn((500, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    expected = np.quantile(score(make(drawn)).detach().numpy(), (0.1, 0.8))
    result = interpolate(make, z, -z, calibration=500, seed=7, **settings)
    assert result.score_range == pytest.approx(tuple(expected), rel=1e-12)
    assert interpolate(make, z, -z, scorer=score, energy="pullback", steps=1).score_range is None


def test_feature_energy_is_that_of_the_features() -> None:
    torch.manual_seed(5)
    seen = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    z0, z1 = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    settings = {"points": 7, "steps": 40, "learning_rate": 0.02, "resample": False}
    result = interpolate(decoder(), z0, z1, features=seen, energy="feature", **settings)
    looked_at = seen(result.samples.flatten(0, 1)).detach().reshape(2, 7, 2)
    torch.testing.assert_close(result.energy, looked_at.diff(dim=1).square().mean(2).sum(1))
    assert (result.energy < result.start_energy).all()
    other = interpolate(decoder(), z0, z1, energy="pullback", **settings)
    torch.testing.assert_close(other.energy, other.samples.diff(dim=1).flatten(2).square().mean(2).sum(1))
    assert not torch.allclose(other.latents, result.latents)
    # with a scored energy, features take the samples' place in s_i
    result = interpolate(
        decoder(), z0, z1, features=seen, scorer=score, score_range=(-8.0, 0.0), energy="conformal", **settings
    )
    looked_at = seen(result.samples.flatten(0, 1)).detach().reshape(2, 7, 2)
    torch.testing.assert_close(result.energy, path_energy("conformal", looked_at, result.scores, (-8.0, 0.0), 0.2))


@pytest.mark.parametrize("h", [0.0, 0.05, 1.5])
def test_h_is_the_given_one(h: float) -> None:
    """The energy of the path that came out, by a loop."""
    torch.manual_seed(2)
    z0, z1 = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    settings = {"scorer": score, "score_range": (-8.0, 0.0), "points": 6, "steps": 15, "learning_rate": 0.02}
    for energy in ("critic", "conformal"):
        result = interpolate(decoder(), z0, z1, energy=energy, h=h, resample=False, **settings)
        for pair in range(2):
            d = [min((min(max(c, -8.0), 0.0) + 18) / 18, 0.99) for c in result.scores[pair].tolist()]
            expected = 0.0
            for i in range(5):
                root = ((result.samples[pair, i + 1] - result.samples[pair, i]).square().sum().item() / 6) ** 0.5
                toll = h / math.sqrt(d[i] * d[i + 1])
                expected += (toll + root) ** 2 if energy == "critic" else ((1 + toll) * root) ** 2
            assert result.energy[pair].item() == pytest.approx(expected, rel=1e-10), energy


@pytest.mark.parametrize("curve", ["polynomial", "cubic", "nodes"])
def test_radii_on_the_sphere_are_between_those_of_the_ends(curve: str) -> None:
    torch.manual_seed(2)
    z0, z1 = torch.randn(3, 4).double(), 3 * torch.randn(3, 4).double()
    settings = {"scorer": score, "curve": curve, "points": 8, "steps": 10, "learning_rate": 0.05}
    settings |= {"score_range": (-8.0, 0.0), "resample": False}
    radii = {
        sphere: interpolate(decoder(), z0, z1, sphere=sphere, **settings).latents.norm(dim=2)
        for sphere in (True, False)
    }
    t = torch.linspace(0, 1, 8, dtype=torch.float64)
    expected = (1 - t) * z0.norm(dim=1, keepdim=True) + t * z1.norm(dim=1, keepdim=True)
    torch.testing.assert_close(radii[True], expected, rtol=1e-12, atol=1e-12)
    assert (expected - radii[False]).abs().amax(1).min() > 0.01


def test_a_scorer_of_small_range_hardly_acts() -> None:
    """The 10 of the realism is in the units of the score, as the documentation warns."""
    z = torch.tensor([[-1.0, 0.0]]).double()
    result = {
        scale: interpolate(
            plane, z, -z, scorer=lambda x, scale=scale: scale * ring(x), score_range=(-50.0 * scale, 0.0), points=24,
            degree=5, steps=200, learning_rate=0.01,
        ).length.item()
        for scale in (1, 0.02)
    }  # fmt: skip
    assert result[1] > 2.4 and result[0.02] < 2.1


def test_constant_speed() -> None:
    """A generator that is fast at one end."""
    fast = lambda z: torch.cat([z.exp(), z], 1)  # noqa: E731
    z0, z1 = torch.tensor([[-3.0]]).double(), torch.tensor([[3.0]]).double()
    steps = [
        interpolate(fast, z0, z1, energy="linear", points=40, resample=resample).samples[0].diff(dim=0).norm(dim=1)
        for resample in (False, True)
    ]
    assert steps[0].max() / steps[0].min() > 10
    assert steps[1].max() / steps[1].min() < 1.05


def test_modules_are_evaluated_and_given_back() -> None:
    make = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2)).double()
    make[2].eval()
    z0, z1 = torch.randn(2, 4).double(), torch.randn(2, 4).double()
    statistics = make[1].running_mean.clone()
    first = interpolate(make, z0, z1, scorer=score, **QUICK)
    assert torch.equal(statistics, make[1].running_mean)
    assert [m.training for m in make] == [True, True, False, True]
    assert torch.equal(first.samples, interpolate(make.forward, z0, z1, scorer=score, **QUICK).samples)


def test_half_precision_images_and_equal_ends() -> None:
    make = nn.ConvTranspose2d(2, 3, 2).bfloat16()
    z = torch.randn(2, 2, 3, 3).bfloat16()
    result = interpolate(make, z, z.flip(0), scorer=score, points=5, **QUICK)
    assert result.latents.dtype == result.samples.dtype == torch.bfloat16
    assert result.latents.shape == (2, 5, 2, 3, 3) and torch.equal(result.latents[:, -1], z.flip(0))
    still = interpolate(plane, LEFT, LEFT, scorer=ring, score_range=(-50.0, 0.0), steps=2)
    assert still.latents.isfinite().all() and still.length.item() < 0.01


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"energy": "best"}, "energy='best'"),
        ({"curve": "line"}, "curve='line'"),
        ({"scorer": None}, "needs a scorer, .*give scorer="),
        ({"energy": "feature"}, "needs a function of the samples: give features="),
        ({"points": 2}, "points=2"),
        ({"degree": 1}, "degree=1"),
        ({"steps": 1e3}, "steps=1000.0: give a whole number"),
        ({"calibration": 1}, "calibration=1"),
        ({"calibration": [[0.0, 0.0]]}, "give latent codes, or a whole number"),
        ({"h": -1.0}, "h=-1.0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"score_range": (1.0, 0.0)}, "score_range"),
        ({"score_range": (1.0,)}, r"score_range=\(1.0,\): give two finite scores"),
        ({"quantiles": (0.9, 0.1)}, "quantiles"),
        ({"z0": torch.zeros(2), "z1": torch.zeros(2)}, r"z0\[None\]"),
        ({"z0": LEFT * math.nan}, "z0 has values"),
        ({"calibration": torch.zeros(5, 3)}, r"\(n, 2\)"),
        ({"scorer": lambda x: 0 * x.sum(1)}, "does not distinguish samples"),
        ({"scorer": lambda x: x}, r"scorer returned shape"),
        ({"generator": lambda z: z[:1]}, "generator returned"),
    ],
)
def test_what_is_refused(arguments: dict[str, object], said: str) -> None:
    given = {"generator": plane, "z0": LEFT, "z1": RIGHT, "scorer": ring, **arguments}
    with pytest.raises(ValueError, match=said):
        interpolate(**given)


def test_an_infinite_energy_is_reported() -> None:
    with pytest.raises(FloatingPointError, match="pair 0 is nan at step 0"):
        interpolate(lambda z: z.log(), LEFT, RIGHT, energy="pullback")


def test_a_generator_without_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="the latent codes get no gradient from the samples"):
        interpolate(torch.no_grad()(lambda z: 2 * z), LEFT, RIGHT, energy="pullback")
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        interpolate(plane, LEFT, RIGHT, energy="pullback")
