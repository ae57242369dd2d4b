"""Paths between pairs of codes by each method, and what is measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_fam.gan import LatentPath, interpolate

from .judging import Jury
from .networks import Critic, Generator

METHODS = ("linear", "slerp", "pullback", "feature", "conformal", "critic")
SEARCHED = METHODS[2:]


@dataclass(frozen=True)
class Settings:
    """Of the search; all but the calibration as in the paper's code for MNIST.

    Attributes:
        points: on a path.
        degree: of the polynomial.
        steps: of Adam.
        learning_rate: of Adam.
        h: what the score counts against length.
        calibration: generated samples for the range of the scores.
    """

    points: int = 24
    degree: int = 5
    steps: int = 100
    learning_rate: float = 1e-3
    h: float = 0.6
    calibration: int = 2048


def walk(generator: Generator, critic: Critic, z0: Tensor, z1: Tensor, settings: Settings) -> dict[str, LatentPath]:
    """A path for each pair by each method, all of them at constant speed in the image space."""
    paths: dict[str, LatentPath] = {}
    for energy in SEARCHED:
        found = interpolate(
            generator, z0, z1, scorer=critic, features=critic.features if energy == "feature" else None, energy=energy,
            **vars(settings),
        )  # fmt: skip
        paths |= {"linear": found.linear, "slerp": found.slerp, energy: found}
        print(f"{energy}: done", flush=True)
    return {method: paths[method] for method in METHODS}


@torch.no_grad()
def measured(path: LatentPath, critic: Critic, jury: Jury) -> dict[str, Tensor]:
    """One number a pair. Scores and the jury's opinions are those of the inner points: the ends are given."""
    pairs, points = path.samples.shape[:2]
    images = path.samples.flatten(0, 1)
    inner = path.samples[:, 1:-1]
    distance = jury.distance(inner.flatten(0, 1)).reshape(pairs, points - 2)
    confidence = jury.confidence(inner.flatten(0, 1)).reshape(pairs, points - 2)
    scores = path.scores[:, 1:-1]
    return {
        "latent_length": length(path.latents),
        "image_length": path.length,
        "feature_length": length(critic.features(images).reshape(pairs, points, -1)),
        "worst_critic": scores.amin(1),
        "mean_critic": scores.mean(1),
        "worst_distance": distance.amax(1),
        "mean_distance": distance.mean(1),
        "worst_confidence": confidence.amin(1),
        "mean_confidence": confidence.mean(1),
    }


def length(paths: Tensor) -> Tensor:
    """Of each path, (pairs,)."""
    return paths.diff(dim=1).flatten(2).norm(dim=2).sum(1)
