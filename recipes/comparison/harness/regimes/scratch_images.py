"""A small ResNet or vision transformer of transformers from scratch, on the images of FashionMNIST or CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from ..tasks import Examples
from .base import CommonSettings, Items, Regime

PATCHES_A_SIDE = 4
# Mean and deviation by the number of channels: FashionMNIST as published, CIFAR-10 over all pixels and colors.
STATISTICS = {1: (0.286, 0.353), 3: (0.473, 0.251)}


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings, besides the common ones.

    Attributes:
        network: ``"resnet"``, or ``"vit"``, which takes twice the epochs.
    """

    epochs: float = 15
    network: str = "resnet"


class FromScratch(Regime):
    """A learning rate that falls linearly."""

    Settings = Settings

    def items(self, examples: Examples, settings: Settings, cache: Path) -> Items:
        """Return standardized images, ``(channels, height, width)``."""
        mean, deviation = STATISTICS[examples.inputs.shape[1]]
        images = (torch.from_numpy(examples.inputs.copy()).float() / 255 - mean) / deviation
        return [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, examples.labels, strict=True)]

    def model(self, train: Items, classes: int, settings: Settings) -> nn.Module:
        """Return a ResNet of three stages, .5 M parameters, or a transformer of four blocks, .15 M.

        Raises:
            ValueError: the network is unknown.
        """
        channels, side, _ = train[0]["pixel_values"].shape
        if settings.network == "resnet":
            sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
            return ResNetForImageClassification(ResNetConfig(num_channels=channels, num_labels=classes, **sizes))
        if settings.network != "vit":
            raise ValueError(f"network={settings.network!r}: give 'resnet' or 'vit'.")
        shape = {"image_size": side, "patch_size": side // PATCHES_A_SIDE, "num_channels": channels}
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
        return ViTForImageClassification(ViTConfig(num_labels=classes, **shape, **sizes))
