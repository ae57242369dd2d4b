"""Small generators and critics."""

from __future__ import annotations

from torch import nn


def plane_networks(latent_size: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Perceptrons of three hidden layers, for points of the plane."""
    return perceptron(latent_size, width, 2), perceptron(2, width, 1)


def perceptron(inputs: int, width: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def image_networks(latent_size: int, width: int) -> tuple[nn.Module, nn.Module]:
    """Convolutions, for images of 28 x 28 pixels in [-1, 1]; the critic has no normalization."""
    generator = nn.Sequential(
        nn.Linear(latent_size, 2 * width * 7 * 7, bias=False),
        nn.Unflatten(1, (2 * width, 7, 7)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )
    critic = nn.Sequential(
        nn.Conv2d(1, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * width * 7 * 7, 1),
    )
    return generator, critic
