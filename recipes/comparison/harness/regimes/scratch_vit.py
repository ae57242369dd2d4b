"""A small vision transformer from scratch with the Trainer, on the images of FashionMNIST or CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import ViTConfig, ViTForImageClassification, set_seed

from ..methods import Method
from ..tasks import Split
from . import scratch_images
from .loop import PARTS
from .outcome import Outcome
from .with_trainer import arguments_for, train_and_predict

PATCHES_A_SIDE = 4


@dataclass(frozen=True)
class Settings(scratch_images.Settings):
    epochs: int = 30


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """Sixteen patches, four blocks of width 64, .15 M parameters, no dropout; a learning rate that falls linearly."""
    set_seed(seed)
    channels, _, side = split.train.inputs.shape[1:]
    config = ViTConfig(
        image_size=side,
        patch_size=side // PATCHES_A_SIDE,
        num_channels=channels,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=split.classes,
    )
    model = ViTForImageClassification(config)
    data = {part: scratch_images.examples(getattr(split, part)) for part in PARTS}
    return train_and_predict(method, model, data, arguments_for(settings, seed), order={})
