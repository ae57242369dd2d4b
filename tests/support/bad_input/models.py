"""The models of the catalog's commands."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

from support.languages import tiny_tokenizer
from support.tiny_recipes import SIZES, encoder, language_model, vision_model


def make_models(folder: Path) -> dict[str, str]:
    """Save an encoder, a classifier of texts, one of images and a language model; return their folders."""
    torch.manual_seed(0)
    classes = {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    config = BertConfig(vocab_size=50, max_position_embeddings=32, **SIZES, **classes)
    BertForSequenceClassification(config).save_pretrained(folder / "classifier")
    tiny_tokenizer().save_pretrained(folder / "classifier")
    image = Path(vision_model(folder / "image"))
    settings = json.loads((image / "config.json").read_text())
    settings |= {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    (image / "config.json").write_text(json.dumps(settings))
    return {
        "text": encoder(folder / "text"),
        "classifier": str(folder / "classifier"),
        "image": str(image),
        "lm": language_model(folder / "lm"),
    }
