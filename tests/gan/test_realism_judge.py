"""RealismJudge: scores by independent software, intervals, and samples that are known to be bad."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import Tensor, nn

from hf_fam.gan import LatentPath, PathComparison, RealismJudge, SamplePath, interpolate
from hf_fam.gan.realism_scores import BANDWIDTHS, RIDGE, density_score, discriminator_score

RING = {"score_range": (-50.0, 0.0), "points": 24, "degree": 5, "steps": 300, "learning_rate": 0.01}


def on_ring(count: int, seed: int) -> Tensor:
    """Points of radius N(1, 0.1^2), in any direction."""
    random = torch.Generator().manual_seed(seed)
    angle = 2 * torch.pi * torch.rand(count, dtype=torch.float64, generator=random)
    radius = 1 + 0.1 * torch.randn(count, dtype=torch.float64, generator=random)
    return torch.stack([angle.cos() * radius, angle.sin() * radius], 1)


def profile(x: Tensor) -> Tensor:
    return -50 * (x.norm(dim=1) - 1) ** 2


def quadrants(x: Tensor) -> Tensor:
    """Logits of the four half-axes."""
    return 5 * torch.cat([x, -x], 1)


def plane(x: Tensor) -> Tensor:
    return x


def with_radius(x: Tensor) -> Tensor:
    return torch.cat([x, x.norm(dim=1, keepdim=True)], 1)


def onto_the_ring(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def judge_of_the_ring(**more: Any) -> RealismJudge:
    return RealismJudge(on_ring(600, 0), features=with_radius, classifier=quadrants, **more)


def standardized(values: np.ndarray[Any, Any], held_out: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy((values - held_out.mean()) / held_out.std(ddof=1))


def test_every_score_by_independent_software() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh()).double()
    head, autoencoder = nn.Linear(6, 3).double(), nn.Linear(2, 2).double()
    real, generated = torch.randn(80, 3, 2, 2).double(), 1.5 * torch.randn(60, 3, 2, 2).double()
    samples = torch.randn(9, 3, 2, 2).double()
    judge = RealismJudge(
        real,
        features=network,
        classifier=lambda x: SimpleNamespace(logits=head(network(x))),
        generated=generated,
        autoencoder=lambda x: SimpleNamespace(sample=autoencoder(x)),
    )
    found = judge(samples)
    assert tuple(found) == judge.names and set(found) == {
        *("pixels", "features", "density", "confidence", "discriminator", "reconstruction")
    }
    reference, held_out = real[0::2], real[1::2]

    def seen(x: Tensor) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            return network(x).numpy()

    def flat(x: Tensor) -> np.ndarray[Any, Any]:
        return x.flatten(1).numpy()

    for name, view in (("pixels", flat), ("features", seen)):
        neighbors = NearestNeighbors(n_neighbors=5).fit(view(reference))
        distances = [-neighbors.kneighbors(view(x))[0][:, -1] for x in (samples, held_out)]
        torch.testing.assert_close(found[name], standardized(*distances), rtol=1e-6, atol=1e-6)
    rows = seen(reference)
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    whiten = vectors / np.sqrt(values)
    points = (rows - rows.mean(0)) @ whiten
    likelihoods = [KernelDensity(bandwidth=b).fit(points[0::2]).score(points[1::2]) for b in BANDWIDTHS]
    density = KernelDensity(bandwidth=BANDWIDTHS[int(np.argmax(likelihoods))]).fit(points)
    logs = [density.score_samples((seen(x) - rows.mean(0)) @ whiten) for x in (samples, held_out)]
    torch.testing.assert_close(found["density"], standardized(*logs), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        entropies = [-stats.entropy(head(network(x)).softmax(1).numpy(), axis=1) for x in (samples, held_out)]
        errors = [-(autoencoder(x) - x).flatten(1).square().mean(1).sqrt().numpy() for x in (samples, held_out)]
    torch.testing.assert_close(found["confidence"], standardized(*entropies), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found["reconstruction"], standardized(*errors), rtol=1e-9, atol=1e-9)
    scaled = [(seen(x) - rows.mean(0)) / rows.std(0, ddof=1) for x in (reference, generated, samples, held_out)]
    # sklearn minimizes C * sum of weighted losses + |w|^2 / 2.
    regression = LogisticRegression(C=1 / (2 * RIDGE), solver="newton-cholesky", tol=1e-12, max_iter=1000)
    regression.fit(
        np.concatenate(scaled[:2]), np.repeat([1, 0], (40, 60)), sample_weight=np.repeat([0.5 / 40, 0.5 / 60], (40, 60))
    )
    odds = [regression.decision_function(x) for x in scaled[2:]]
    torch.testing.assert_close(found["discriminator"], standardized(*odds), rtol=1e-6, atol=1e-6)


def test_real_samples_that_were_held_out_are_the_unit() -> None:
    real = on_ring(600, 0)
    judge = RealismJudge(
        real, features=plane, classifier=quadrants, generated=on_ring(100, 1) * 1.3, autoencoder=onto_the_ring
    )
    for values in judge(real[1::2]).values():
        assert values.mean().abs() < 1e-9 and abs(values.std() - 1) < 1e-9
    for values in judge(on_ring(600, 7)).values():  # real ones that it has never seen
        assert values.mean().abs() < 0.2 and 0.7 < values.std() < 1.3


def test_worse_samples_have_lower_scores() -> None:
    judge = judge_of_the_ring(generated=0.3 * on_ring(300, 3), autoencoder=onto_the_ring)
    before = judge(on_ring(300, 4))
    for shrink in (0.7, 0.4, 0.1):
        after = judge(shrink * on_ring(300, 4))
        for name in judge.names:
            assert after[name].mean() < before[name].mean() - 0.1, (name, shrink)
        before = after


def test_the_path_around_the_ring_is_better_than_the_straight_line() -> None:
    """The case whose answer is known: the straight line crosses the empty middle."""
    ends = onto_the_ring(on_ring(20, 5))
    path = interpolate(plane, ends, -ends, scorer=profile, h=0.2, **RING)
    judge = judge_of_the_ring(generated=0.5 * on_ring(300, 3), autoencoder=onto_the_ring)
    compared = judge.compare(path)
    assert compared.better == judge.names and compared.worse == ()
    assert all(difference.low > 0 for difference in compared.worst.values())
    back = judge.compare(path.linear, path)
    assert back.worse == judge.names and back.better == ()
    same = judge.compare(path, path)
    assert same.better == same.worse == () and all(value.mean == 0 for value in same.mean.values())
    text = str(compared)
    assert "6 of 6 scores better, 0 worse, 0 undecided" in text and text.count("\n") == 7


def test_differences_are_paired_and_have_students_interval() -> None:
    torch.manual_seed(2)
    one, other = (SamplePath(torch.randn(7, 5, 2).double(), None) for _ in range(2))
    judge = judge_of_the_ring()
    compared = judge.compare(one, other)
    assert isinstance(compared, PathComparison) and compared.pairs == 7
    for name in judge.names:
        values, others = (judge.score_path(path)[name].numpy() for path in (one, other))
        assert values.shape == (7, 3)
        by_hand = judge(one.samples[2, 1:-1])[name]  # the end points do not count
        np.testing.assert_allclose(values[2], by_hand)
        for found, reduce in ((compared.mean[name], np.mean), (compared.worst[name], np.min)):
            test = stats.ttest_rel(reduce(values, axis=1), reduce(others, axis=1))
            interval = test.confidence_interval(0.95)
            np.testing.assert_allclose(
                (found.low, found.mean, found.high), (interval.low, (interval.low + interval.high) / 2, interval.high)
            )


def test_the_intervals_cover_as_they_say() -> None:
    """Two paths without a difference: 95 of 100 intervals have 0 inside, and not 100."""
    judge = RealismJudge(on_ring(100, 0), features=plane, classifier=quadrants)
    inside = 0
    for trial in range(200):
        samples = on_ring(2 * 10 * 3, 100 + trial).reshape(2, 10, 3, 2)
        compared = judge.compare(SamplePath(samples[0], None), SamplePath(samples[1], None))
        inside += compared.mean["features"].low <= 0 <= compared.mean["features"].high
    assert 180 <= inside <= 199


def test_modules_are_evaluated_and_given_back() -> None:
    network = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout()).double()
    statistics = network[1].running_mean.clone()
    judge = RealismJudge(on_ring(60, 0), features=network, classifier=quadrants)
    first, second = judge(on_ring(9, 1)), judge(on_ring(9, 1))
    assert all(torch.equal(first[name], second[name]) for name in judge.names)
    assert torch.equal(statistics, network[1].running_mean) and network[2].training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_half_precision_and_the_random_state() -> None:
    before = torch.get_rng_state()
    real, generated = on_ring(100, 0).bfloat16(), on_ring(40, 1).bfloat16()
    judge = RealismJudge(real, features=plane, classifier=quadrants, generated=generated)
    assert all(values.dtype == torch.float64 for values in judge(on_ring(9, 1).bfloat16()).values())
    assert torch.equal(before, torch.get_rng_state())


def test_density_and_discriminator_in_degenerate_features() -> None:
    """Features that are constant, doubled, or separate the classes perfectly."""
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.cat([rows, rows, torch.ones(60, 2).double()], 1)
    assert density_score(rows)(rows).isfinite().all()
    score = discriminator_score(rows, rows - 9)
    assert (score(rows) > 0).all() and (score(rows - 9) < 0).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"real": on_ring(19, 0)}, "real has 19 samples: give at least 20"),
        ({"real": [1.0]}, r"real=\[1.0\]: give floating-point samples"),
        ({"real": torch.ones(40, 2).long()}, r"real is torch.int64 of shape \(40, 2\)"),
        ({"features": None}, "features=None"),
        ({"classifier": 3}, "classifier=3"),
        ({"autoencoder": 3}, "autoencoder=3"),
        ({"real": torch.full((40, 2), torch.nan)}, "real has values that are not finite"),
        ({"real": torch.ones(40, 2)}, "all real samples have the same score"),
        ({"generated": torch.zeros(40, 3)}, r"generated has samples of shape \(3,\): give samples of shape \(2,\)"),
        ({"features": lambda x: x[:, 0]}, r"features returned shape \(300,\) for 300 samples: it must return"),
        ({"classifier": lambda x: None}, "classifier returned NoneType for 300 samples"),
        ({"classifier": lambda x: x / 0}, '"confidence" is not finite: check the values of the classifier'),
        ({"autoencoder": lambda x: x[:, :1]}, r"autoencoder returned shape \(300, 1\)"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    arguments = {"real": on_ring(600, 0), "features": plane, "classifier": quadrants, **given}
    with pytest.raises((TypeError, ValueError), match=said):
        RealismJudge(arguments.pop("real"), **arguments)


def test_refusals_of_samples_and_paths() -> None:
    judge = judge_of_the_ring()
    with pytest.raises(ValueError, match="samples has samples of shape"):
        judge(torch.zeros(3, 4))
    with pytest.raises((TypeError, ValueError), match="path=3"):
        judge.compare(3)
    path = LatentPath(torch.zeros(3, 4, 2), None, torch.zeros(3, 4, 2))
    with pytest.raises(ValueError, match="give baseline="):
        judge.compare(path)
    with pytest.raises(ValueError, match="paths of 3 pairs, a baseline of 2"):
        judge.compare(path, SamplePath(torch.zeros(2, 4, 2), None))
    one = SamplePath(torch.zeros(1, 4, 2), None)
    with pytest.raises(ValueError, match="at least two"):
        judge.compare(one, one)
