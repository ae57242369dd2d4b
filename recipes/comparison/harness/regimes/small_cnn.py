"""A small convolutional network from scratch on gray images of 28 x 28 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..methods import Method
from ..tasks import Examples, Split
from .loop import PARTS, train
from .outcome import Outcome


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    epochs: int = 20
    batch_size: int = 32
    weight_decay: float = 0.0
    channels: int = 8
    width: int = 64


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """Two convolutions with pooling, a hidden layer (the representation), a head."""
    inputs = {part: pixels(getattr(split, part)) for part in PARTS}
    torch.manual_seed(seed)
    c = settings.channels
    model = nn.Sequential(
        *(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(2 * c * 49, settings.width), nn.ReLU()),
        nn.Linear(settings.width, split.classes),
    )
    method.attach(model, seed)
    return train(model, inputs, torch.from_numpy(split.train.labels), settings, method)


# Mean and deviation by the number of channels: FashionMNIST as published, CIFAR-10 over all pixels and colors.
STATISTICS = {1: (0.286, 0.353), 3: (0.473, 0.251)}


def pixels(examples: Examples) -> torch.Tensor:
    """Standardised images, (N, channels, height, width)."""
    mean, deviation = STATISTICS[examples.inputs.shape[1]]
    return (torch.from_numpy(examples.inputs.copy()).float() / 255 - mean) / deviation
