"""Fine-tuning of all of EfficientNet-Lite0 (ImageNet weights), on small images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..efficientnet import efficientnet_lite0
from ..tasks import Examples
from .base import CommonSettings, Items, Regime


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings, besides the common ones.

    Attributes:
        resolution: that images are enlarged to, in the model.
    """

    epochs: float = 6
    resolution: int = 64


class ImageFineTuning(Regime):
    """A learning rate that falls linearly."""

    Settings = Settings

    def items(self, examples: Examples, settings: Settings, cache: Path) -> Items:
        """Return images of whole numbers, ``(channels, height, width)``."""
        images = torch.from_numpy(examples.inputs.copy())
        return [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, examples.labels, strict=True)]

    def model(self, train: Items, classes: int, settings: Settings) -> nn.Module:
        """Return the pretrained network below a new head."""
        return efficientnet_lite0(classes, settings.resolution).to(memory_format=torch.channels_last)
