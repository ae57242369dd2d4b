"""Small convolutional networks for 28 x 28 images in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LATENT = 32


class Generator(nn.Sequential):
    """From codes (n, latent) to images (n, 1, 28, 28)."""

    def __init__(self, latent: int = LATENT, channels: int = 48) -> None:
        super().__init__(
            nn.Linear(latent, channels * 7 * 7, bias=False),
            nn.Unflatten(1, (channels, 7, 7)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(),
            nn.ConvTranspose2d(channels // 2, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )


class Critic(nn.Module):
    """From images to one number each; no normalization, which would couple the images of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk(16, normalized=False)
        self.value = nn.Linear(128, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.value(self.features(images)).squeeze(1)


class Judge(nn.Module):
    """A classifier of real images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = trunk(32, normalized=True)
        self.logits = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(self.features(images))


def trunk(channels: int, normalized: bool) -> nn.Sequential:
    """From images to 128 features."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 4, stride=2, padding=1),
        nn.BatchNorm2d(channels) if normalized else nn.Identity(),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels) if normalized else nn.Identity(),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * channels * 7 * 7, 128),
        nn.LeakyReLU(0.2),
    )


def codes(count: int, generator: torch.Generator) -> Tensor:
    """From the distribution that the generator was trained on."""
    return torch.randn(count, LATENT, generator=generator)
