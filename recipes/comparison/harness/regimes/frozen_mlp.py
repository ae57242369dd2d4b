"""A head of two layers on frozen sentence embeddings: the trunk never moves, a run takes seconds."""

from __future__ import annotations

import itertools
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
    return fit(split, settings, method, seed, cache, hidden=1)


def fit(split: Split, settings: Settings, method: Method, seed: int, cache: Path, hidden: int) -> Outcome:
    """The same with so many hidden layers of that width."""
    inputs = {part: embed(getattr(split, part).inputs, cache) for part in PARTS}
    torch.manual_seed(seed)
    sizes = [inputs["train"].shape[-1]] + [settings.width] * hidden
    layers = [layer for m, n in itertools.pairwise(sizes) for layer in (nn.Linear(m, n), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], split.classes))
    method.attach(model, seed)
    return train(model, inputs, torch.from_numpy(split.train.labels), settings, method)
