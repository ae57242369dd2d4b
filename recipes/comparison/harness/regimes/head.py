"""A head on frozen features of texts (all-MiniLM-L6-v2) or images (EfficientNet-Lite0), which are computed once."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertPooler

from ..embeddings import embed, embed_images, minilm_path
from ..tasks import Examples, Task
from .base import CommonSettings, Items, Regime


@dataclass(frozen=True)
class Settings(CommonSettings):
    """Settings, besides the common ones.

    Attributes:
        tokens: of texts, ``"mean"``, what the model was trained for, or ``"first"``, what BERT's pooler reads.
        resolution: of images.
        hidden: layers with tanh below the last one: ``"none"``, ``"pooler"`` for BERT's own, or widths, ``"256 256"``.
    """

    learning_rate: float = 1e-2
    epochs: float = 60
    warmup: float = 0.0
    tokens: str = "mean"
    resolution: int = 64
    hidden: str = "none"


class Head(Regime):
    """The backbone is in evaluation mode and never moves; a learning rate that falls along a cosine."""

    Settings = Settings

    def reads(self, task: Task) -> bool:
        """Return True for every task."""
        return True

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """Return the schedule."""
        return {"lr_scheduler_type": "cosine"}

    def items(self, examples: Examples, settings: Settings, cache: Path) -> Items:
        """Return features, 384 numbers a text and 1,280 an image."""
        of_images = isinstance(examples.inputs, np.ndarray)
        features = (
            embed_images(examples.inputs, cache, settings.resolution)
            if of_images
            else embed(examples.inputs, cache, settings.tokens)
        )
        return [{"features": x, "labels": int(y)} for x, y in zip(features, examples.labels, strict=True)]

    def model(self, train: Items, classes: int, settings: Settings) -> nn.Module:
        """Return a head, initialized as transformers does."""
        return HeadOnFeatures(len(train[0]["features"]), classes, settings.hidden)


class HeadOnFeatures(nn.Module):
    """Layers with tanh, and a linear classifier.

    Args:
        features: number of features.
        classes: number of classes.
        hidden: see `Settings`.
    """

    def __init__(self, features: int, classes: int, hidden: str = "none") -> None:
        super().__init__()
        widths = [] if hidden == "none" else [features] if hidden == "pooler" else [*map(int, hidden.split())]
        pairs = [*itertools.pairwise([features, *widths])]
        self.hidden = nn.Sequential(*(layer for m, n in pairs for layer in (nn.Linear(m, n), nn.Tanh())))
        self.classifier = nn.Linear(widths[-1] if widths else features, classes)
        for layer in [*self.hidden[::2], self.classifier]:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if hidden == "pooler":
            self.hidden[0].load_state_dict(_pooler().dense.state_dict())

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.classifier(self.hidden(features))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@functools.cache
def _pooler() -> BertPooler:
    return BertModel.from_pretrained(minilm_path()).pooler
