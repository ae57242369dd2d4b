"""Fine-tuning of all of EfficientNet-Lite0 (ImageNet weights) with the Trainer, on small images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..efficientnet import efficientnet_lite0
from ..methods import Method
from ..tasks import Examples, Split
from .loop import PARTS
from .outcome import Outcome
from .with_trainer import arguments_for, train_and_predict


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    epochs: int = 6
    batch_size: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.1
    resolution: int = 64


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """Images are enlarged to the resolution inside the model; a learning rate that falls linearly."""
    set_seed(seed)
    model = efficientnet_lite0(split.classes, settings.resolution).to(memory_format=torch.channels_last)
    data = {part: examples(getattr(split, part)) for part in PARTS}
    return train_and_predict(method, model, data, arguments_for(settings, seed), order={})


def examples(part: Examples) -> list[dict[str, Any]]:
    images = torch.from_numpy(part.inputs.copy())
    return [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, part.labels, strict=True)]
