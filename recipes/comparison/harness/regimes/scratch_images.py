"""A small ResNet of transformers from scratch with the Trainer, on the images of FashionMNIST or CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import ResNetConfig, ResNetForImageClassification, set_seed

from ..methods import Method
from ..tasks import Examples, Split
from .loop import PARTS
from .outcome import Outcome
from .small_cnn import pixels
from .with_trainer import arguments_for, train_and_predict


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    epochs: int = 15
    batch_size: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.1


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """Three stages of 32, 64 and 128 channels, .5 M parameters; a learning rate that falls linearly."""
    set_seed(seed)
    config = ResNetConfig(
        num_channels=split.train.inputs.shape[1],
        embedding_size=32,
        hidden_sizes=[32, 64, 128],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=split.classes,
    )
    model = ResNetForImageClassification(config)
    data = {part: examples(getattr(split, part)) for part in PARTS}
    return train_and_predict(method, model, data, arguments_for(settings, seed), order={})


def examples(part: Examples) -> list[dict[str, Any]]:
    return [{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels(part), part.labels, strict=True)]
