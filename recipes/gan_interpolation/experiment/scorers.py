"""Scores that guide a path: what a critic says, and scores that are meant to be harder to exploit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from hf_fam.gan import RealismScorer

from .vae import train_classifier, train_discriminator

Scorer = Callable[[Tensor], Tensor]
NOISE, COPIES = 0.3, 4


def scorers(
    real: Tensor,
    labels: Tensor,
    reference: Tensor,
    generated: Tensor,
    lines: Tensor,
    steps: int,
    epochs: int,
    seed: int,
) -> dict[str, Scorer]:
    """The scores by name, each trained on images that neither the judge nor the pairs of codes come from.

    Args:
        real: real images.
        labels: their classes.
        reference: the decoder's images of the codes of the real ones.
        generated: the decoder's images of random codes.
        lines: the decoder's images of codes on straight lines between codes of real images.
        steps: of each discriminator.
        epochs: of each classifier.
        seed: of everything.
    """
    seed = 10_000 + 100 * seed
    critics = [train_discriminator(real, generated, steps, seed + k) for k in range(3)]
    smooth = train_discriminator(real, generated, steps, seed + 3, NOISE)
    ratio = train_discriminator(reference, lines, steps, seed + 4)
    network = train_classifier(real, labels, epochs, seed + 5)
    features = network[:-1]
    with torch.no_grad():
        rows, others = features(real), features(generated)
    small = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    head = train_discriminator(rows, others, steps, seed + 6, network=small)
    shifts = NOISE * torch.randn(COPIES, *real.shape[1:], generator=torch.Generator().manual_seed(seed))
    unit = in_units_of(reference)
    members = [unit(logit(critic)) for critic in critics]
    return {
        "critic": members[0],
        "critic smoothed by noise": unit(lambda x: torch.stack([logit(smooth)(x + shift) for shift in shifts]).mean(0)),
        "lowest of three critics": lambda x: torch.stack([member(x) for member in members]).amin(0),
        "critic on features": unit(lambda x: logit(head)(features(x))),
        "density ratio": unit(logit(ratio)),
        "density of features": unit(mixture(features, reference, labels)),
        "confidence": unit(confidence(network)),
        "RealismScorer": RealismScorer(reference, features=features, classifier=network),
    }


def logit(network: nn.Module) -> Scorer:
    return lambda samples: network(samples)[:, 0]


def in_units_of(reference: Tensor) -> Callable[[Scorer], Scorer]:
    """Shift and scale scorers, so that the reference has mean 0 and standard deviation 10."""

    def scaled(scorer: Scorer) -> Scorer:
        with torch.no_grad():
            scores = torch.cat([scorer(part) for part in reference[:5000].split(500)])
        mean, deviation = float(scores.mean()), float(scores.std())
        return lambda samples: 10 * (scorer(samples) - mean) / deviation

    return scaled


@torch.no_grad()
def mixture(features: nn.Module, reference: Tensor, labels: Tensor) -> Scorer:
    """The log-density of features under a normal distribution for each class, with a common covariance matrix."""
    rows = features(reference)
    means = torch.stack([rows[labels == k].mean(0) for k in labels.unique()])
    centered = rows - means[labels.unique(return_inverse=True)[1]]
    covariance = centered.T @ centered / len(rows)
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    density = MixtureSameFamily(Categorical(torch.ones(len(means))), MultivariateNormal(means, covariance))
    return lambda samples: density.log_prob(features(samples))


def confidence(network: nn.Module) -> Scorer:
    """Minus the entropy of a classifier."""

    def score(samples: Tensor) -> Tensor:
        logarithms = network(samples).log_softmax(1)
        return (logarithms.exp() * logarithms).sum(1)

    return score


def on_lines(codes: Tensor, count: int, random: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Codes on straight lines between random pairs of codes, at shares between low and high."""
    start, end = codes[torch.randint(len(codes), (2, count), generator=random)]
    return torch.lerp(start, end, low + (high - low) * torch.rand(count, 1, generator=random))
