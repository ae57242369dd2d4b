"""A head of one or two layers as transformers has them, on frozen features: fine-tuning with a frozen trunk."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertPooler

from ..embeddings import embed, minilm_path
from ..methods import Method
from ..tasks import Split
from .loop import PARTS, train
from .outcome import Outcome


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-3
    epochs: int = 120  # as on sentence embeddings
    batch_size: int = 32
    weight_decay: float = 0.0
    tokens: str = "first"  # what BERT's pooler reads, or "mean", what the model was trained for
    hidden: str = "pooler"  # the model's own, "new" (initialised alike), "frozen" (its own, not trained), or "none"


def run(split: Split, settings: Settings, method: Method, seed: int, cache: Path) -> Outcome:
    """384 numbers a text, then 384-384-classes with tanh; the trunk is in evaluation mode, without dropout."""
    inputs = {part: embed(getattr(split, part).inputs, cache, settings.tokens) for part in PARTS}
    if settings.hidden == "frozen":
        inputs = {part: pooled(x) for part, x in inputs.items()}
    torch.manual_seed(seed)
    model = head(inputs["train"].shape[-1], split.classes, settings.hidden)
    method.attach(model, seed)
    return train(model, inputs, torch.from_numpy(split.train.labels), settings, method)


def head(features: int, classes: int, hidden: str) -> nn.Sequential:
    """Weights of deviation .02 and no bias, as transformers initialises what is new."""
    layers = [] if hidden in ("none", "frozen") else [nn.Linear(features, features), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(features, classes))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    if hidden == "pooler":
        model[0].load_state_dict(_pooler().dense.state_dict())
    elif hidden not in ("new", "none", "frozen"):
        raise ValueError(f"hidden={hidden!r}: give 'pooler', 'new', 'none' or 'frozen'.")
    return model


@torch.no_grad()
def pooled(features: Tensor) -> Tensor:
    """What BERT's pooler makes of the first token."""
    outputs: Tensor = _pooler()(features[:, None])
    return outputs


@functools.cache
def _pooler() -> BertPooler:
    return BertModel.from_pretrained(minilm_path()).pooler
