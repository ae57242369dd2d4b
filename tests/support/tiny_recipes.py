"""Every recipe at its smallest: a random model with its tokenizer, a few rows of data, and the flags for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from support.languages import sentence, tiny_tokenizer
from support.launch import ROOT

RECIPES = ROOT / "recipes"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
# Three steps of eight rows, saved and logged at each. Validation is in full batches, whatever the processes; the test's
# last one is not, and there the Trainer fills up with rows that it has had. The epsilon keeps AdamW from blowing
# rounding errors up.
SHORT = {
    "max_steps": 3, "per_device_eval_batch_size": 6, "learning_rate": 1e-2, "adam_epsilon": 1e-3, "logging_steps": 1,
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9,
    "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False,
}  # fmt: skip
ROWS = {"train": 32, "validation": 12, "test": 7}


def encoder(folder: Path, **sizes: int) -> str:
    """A BERT without dropout, so that one and two processes can do the same."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=50, max_position_embeddings=32, **{**SIZES, **sizes}, **rates)
    BertForMaskedLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def language_model(folder: Path) -> str:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def vision_model(folder: Path) -> str:
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **SIZES, **rates)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def text_files(folder: Path, label: Callable[[int], Any], pair: bool = False) -> dict[str, str]:
    """csv files with texts and labels."""
    columns = ("sentence1", "sentence2") if pair else ("text",)
    files = {}
    for part, count in ROWS.items():
        rows = [[*(sentence(n + k, 4 + n % 3).strip() for k in range(len(columns))), label(n)] for n in range(count)]
        path = folder / f"{part}.csv"
        path.write_text("\n".join(",".join(map(str, row)) for row in [[*columns, "label"], *rows]) + "\n")
        files[f"{part}_file"] = str(path)
    return files


def json_files(folder: Path, row: Callable[[int], dict[str, Any]]) -> dict[str, str]:
    files = {}
    for part, count in ROWS.items():
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row(n)) + "\n" for n in range(count)))
        files[f"{part}_file"] = str(path)
    return files


def image_folders(folder: Path) -> dict[str, str]:
    """png files of two classes, one folder a class."""
    from PIL import Image

    generator = np.random.default_rng(0)
    folders = {}
    for part, count in ROWS.items():
        for n in range(count):
            path = folder / part / ("cat", "dog")[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (9, 7, 3), dtype=np.uint8)).save(path)
        folders[f"{part}_dir"] = str(folder / part)
    return folders


def tagged(n: int) -> dict[str, Any]:
    words = sentence(n, 4 + n % 3).split()
    return {"tokens": words, "ner_tags": [("O", "B-X", "I-X")[(n + k * k) % 3] for k in range(len(words))]}


def prompted(n: int) -> dict[str, Any]:
    return {"prompt": sentence(n, 3), "completion": sentence(n + 5, 2 + n % 3)}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "text_classification": lambda folder: {
        "model_name_or_path": encoder(folder / "model"),
        "task_name": "rte",
        **text_files(folder, lambda n: ("yes", "no")[n * n % 3 == 1], pair=True),
    },
    "text_regression": lambda folder: {
        "model_name_or_path": encoder(folder / "model"),
        "task_name": "stsb",
        **text_files(folder, lambda n: n * n % 5, pair=True),
    },
    "token_classification": lambda folder: {
        "model_name_or_path": encoder(folder / "model"),
        "label_column": "ner_tags",
        **json_files(folder, tagged),
    },
    "image_classification": lambda folder: {
        "model_name_or_path": vision_model(folder / "model"),
        "augmentation": "none",
        **image_folders(folder),
    },
    "causal_lm": lambda folder: {
        "model_name_or_path": language_model(folder / "model"),
        **json_files(folder, prompted),
    },
}


def made(recipe: str, folder: Path) -> dict[str, Any]:
    """Model and data in a folder, and the flags that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    return {**MAKERS[recipe](folder), "cache_dir": str(folder / "cache"), "do_predict": True, **SHORT}


def typed(recipe: str, method: str, given: dict[str, Any]) -> list[str]:
    """The arguments of the recipe's command."""
    return [str(RECIPES / recipe / f"{method}.yaml"), *(f"--{name}={value}" for name, value in given.items())]
