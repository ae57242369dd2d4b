"""A head of two layers on frozen sentence embeddings: the trunk never moves, a run takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..embeddings import embed
from ..methods import Method
from ..tasks import Split
from .loop import PARTS, train
from .outcome import Outcome


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    epochs: int = 120  # until the training loss of few-shot sets is near zero
    batch_size: int = 32
    weight_decay: float = 0.0
    width: int = 256


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """all-MiniLM-L6-v2, mean over tokens, 384 numbers a text; then 384-width-classes with tanh."""
    inputs = {part: embed(getattr(split, part).inputs, cache) for part in PARTS}
    torch.manual_seed(seed)
    features = inputs["train"].shape[-1]
    model = nn.Sequential(nn.Linear(features, settings.width), nn.Tanh(), nn.Linear(settings.width, split.classes))
    method.attach(model, seed)
    return train(model, inputs, torch.from_numpy(split.train.labels), settings, method)
