"""A linear classifier on frozen features of EfficientNet-Lite0 (ImageNet weights), of small images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..embeddings import embed_images
from ..methods import Method
from ..tasks import Split
from .frozen_head import head
from .loop import PARTS, train
from .outcome import Outcome


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-2
    epochs: int = 60
    batch_size: int = 32
    weight_decay: float = 0.0
    resolution: int = 64


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """1,280 numbers an image, the trunk in evaluation mode; a new head, trained alone."""
    inputs = {part: embed_images(getattr(split, part).inputs, cache, settings.resolution) for part in PARTS}
    torch.manual_seed(seed)
    model = head(inputs["train"].shape[-1], split.classes, "none")
    method.attach(model, seed)
    return train(model, inputs, torch.from_numpy(split.train.labels), settings, method)
