"""RealismScorer: its score by scipy, its largest value, and what a search makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hf_fam.gan import RealismScorer, interpolate
from hf_fam.gan.realism_scorer import FINEST_ENTROPY, RIDGE


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points around (-3, 0) and (3, 0), and around (0, 2), through which a realistic path leads; and their numbers."""
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(3, (count,), generator=random)
    centers = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 2.0]]).double()
    return centers[numbers] + 0.4 * torch.randn(count, 2, dtype=torch.float64, generator=random), numbers


def nearest(x: Tensor) -> Tensor:
    centers = torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 2.0]]).to(x)
    return -((x[:, None] - centers) ** 2).sum(2)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    features = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh()).double()
    return features, nn.Sequential(features, nn.Linear(5, 3)).double()


def test_the_score_by_scipy() -> None:
    features, classifier = networks()
    reference, samples = torch.randn(70, 3, 2, 2).double(), torch.randn(9, 3, 2, 2).double()
    scorer = RealismScorer(reference, features=features, classifier=classifier)
    with torch.no_grad():
        rows, others = features(reference).numpy(), features(samples).numpy()
        chances, theirs = classifier(reference).softmax(1).numpy(), classifier(samples).softmax(1).numpy()
    classes = chances.argmax(1)
    shares = {k: np.mean(classes == k) for k in np.unique(classes)}
    means = {k: rows[classes == k].mean(0) for k in shares}
    centered = rows - np.stack([means[k] for k in classes])
    covariance = centered.T @ centered / 70
    covariance = covariance + RIDGE * np.trace(covariance) / 5 * np.eye(5)

    def log_density(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.log(sum(shares[k] * stats.multivariate_normal(means[k], covariance).pdf(x) for k in shares))

    a = (log_density(others) - log_density(rows).mean()) / log_density(rows).std(ddof=1)
    entropies = -stats.entropy(chances, axis=1)
    b = (-stats.entropy(theirs, axis=1) - entropies.mean()) / max(entropies.std(ddof=1), FINEST_ENTROPY)
    expected = 10 * (np.minimum(a, 1) + np.minimum(b, 0))
    torch.testing.assert_close(scorer(samples).detach(), torch.from_numpy(expected), rtol=1e-8, atol=1e-8)


def test_gradients_and_precision() -> None:
    features, classifier = networks()
    scorer = RealismScorer(torch.randn(70, 3, 2, 2).double(), features=features, classifier=classifier)
    samples = torch.randn(4, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(scorer, (samples,))
    wide = scorer(samples).detach()
    features.float(), classifier.float()
    torch.testing.assert_close(scorer(samples.float()).detach(), wide.float(), rtol=1e-3, atol=1e-3)


def test_a_largest_score_and_far_away_none() -> None:
    scorer = RealismScorer(clusters(900, 0)[0], features=lambda x: x, classifier=nearest)
    everywhere = 20 * torch.rand(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 10
    scores = scorer(everywhere)
    assert scores.max() <= 10
    good = scores > -20
    distance = torch.cdist(everywhere[good], torch.tensor([[-3.0, 0.0], [3.0, 0.0], [0.0, 2.0]]).double()).amin(1)
    assert good.any() and distance.max() < 2.5  # nothing scores well away from the clusters
    for direction in torch.randn(50, 2, generator=torch.Generator().manual_seed(2)).double():
        ray = direction / direction.norm() * torch.tensor([6.0, 12.0, 24.0]).double()[:, None]
        assert (scorer(ray).diff() < 0).all()


def test_a_path_leads_through_the_cluster_between() -> None:
    scorer = RealismScorer(clusters(900, 0)[0], features=lambda x: x, classifier=nearest)
    start = torch.tensor([[-3.0, 0.0]]).double()
    found = interpolate(
        lambda z: z, start, -start, scorer=scorer, h=1.0, points=16, steps=300, learning_rate=0.03,
        calibration=torch.lerp(start, -start, torch.rand(500, 1, dtype=torch.float64)), degree=4,
    )  # fmt: skip
    middle = found.samples[0, 5:11, 1]
    assert middle.max() > 1 and found.mean_score > found.linear.mean_score


def test_an_almost_perfect_classifier_does_not_outweigh_the_density() -> None:
    """Its entropies on the reference hardly vary, so their standard deviation would be no unit."""
    reference = clusters(900, 0)[0]
    scores = [
        RealismScorer(reference, features=lambda x: x, classifier=lambda x, s=sharpness: s * nearest(x))(
            torch.tensor([[0.0, -3.0]]).double()  # as far from the first as from the second cluster
        ).item()
        for sharpness in (10, 100)
    ]
    assert min(scores) > -2000 and scores[0] == pytest.approx(scores[1], rel=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"reference": torch.zeros(19, 2)}, "reference has 19 samples: give at least 20"),
        ({"reference": torch.zeros(30, 2)}, "features of the reference are all the same"),
        ({"reference": None}, "reference=None: give floating-point samples"),
        ({"features": None}, "features=None"),
        ({"features": lambda x: x.sum()}, r"features returned shape \(\) for 500 samples"),
        ({"features": lambda x: x / 0}, "features has values for the reference that are not finite"),
        ({"classifier": lambda x: x * torch.nan}, "classifier has values for the reference that are not finite"),
    ],
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    arguments = {"reference": clusters(900, 0)[0], "features": lambda x: x, "classifier": nearest, **given}
    with pytest.raises((TypeError, ValueError), match=said):
        RealismScorer(arguments.pop("reference"), **arguments)
