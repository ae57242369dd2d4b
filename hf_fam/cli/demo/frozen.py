"""``hf-fam demo --frozen_trunk``: one layer and two on stored sentence embeddings, with and without wrong labels."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PrinterCallback, Trainer, TrainingArguments, set_seed

from ...layer.finding import REPRESENTATION
from ...measure.classification_metrics import accuracy, negative_log_likelihood
from ...train.trainer import FAMTrainer
from ...train.training_args import FAMArguments
from .environment import check_seeds, versions
from .report import FAM, PLAIN
from .task import Task, encoder_folder, evaluating, on_device

# Plain training once more, at a lower learning rate: what FAM should be compared with, too.
LOWER = "Trainer, a third"
SCORES = {"accuracy": "accuracy, %", "nll": "negative log-likelihood"}


@dataclass(frozen=True)
class FrozenSettings:
    """What this demo does; both kinds of runs share all of it.

    Attributes:
        output_dir: where the results go.
        seed: the first of the seeds: of the initial weights, the order of the data, and which labels are wrong.
        runs: number of seeds.
        model: folder of an encoder with its tokenizer; None for all-MiniLM-L6-v2 from its package.
        intents: number of intents, 30 at most, with 10 training examples each.
        wrong_labels: shares of the training examples with a wrong label, one table each.
        epochs: of each training.
        learning_rate: the highest one; it falls linearly. Plain training is also shown at a third of it.
        batch_size: training examples a step.
        widths: of the hidden layer, for each network; 0 is a linear classifier.
        head_lambda: the strength at a linear classifier; None: FAM's default.
        hidden_lambda: the strength at a hidden layer, that of docs/choosing.md.
    """

    output_dir: Path = Path("out/demo_frozen")
    seed: int = 0
    runs: int = 5
    model: Path | None = None
    intents: int = 30
    wrong_labels: Sequence[float] = (0.0, 0.2)
    epochs: int = 60
    learning_rate: float = 1e-3
    batch_size: int = 16
    widths: Sequence[int] = (0, 256)
    head_lambda: float | None = None
    hidden_lambda: float = 0.01

    @classmethod
    def quick(cls, **changes: Any) -> FrozenSettings:
        """Runs that only show that everything works."""
        return cls(**{"intents": 5, "epochs": 3, "runs": 2, **changes})

    def fam(self, width: int) -> FAMArguments:
        """What FAM is told of a network: at most the strength, if its head is all that is trained."""
        if width:
            return FAMArguments(fam_layer=REPRESENTATION, fam_lambda=self.hidden_lambda)
        return FAMArguments(fam_lambda=self.head_lambda)


class SmallNetwork(nn.Module):
    """One or two layers on stored features. ``dense`` is what ``fam_layer="representation"`` finds.

    Args:
        features: numbers an example.
        width: of the hidden layer; 0: a linear classifier.
        classes: number of logits.
    """

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, width) if width else None
        self.classifier = nn.Linear(width or features, classes)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss if there are labels."""
        logits = self.classifier(features if self.dense is None else self.dense(features).tanh())
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class Stored:
    """Embedded texts, (N, features), and their labels, (N,)."""

    features: Tensor
    labels: NDArray[np.int64]

    def examples(self) -> list[dict[str, Any]]:
        """What a Trainer takes."""
        return [{"features": x, "labels": int(y)} for x, y in zip(self.features, self.labels, strict=True)]


def run_frozen_demo(settings: FrozenSettings) -> dict[str, Any]:
    """Train with both trainers for every network, share of wrong labels and seed; print tables and save the numbers.

    Plain training has a second learning rate, as a gain that a lower one gives as well is none.

    Args:
        settings: what to do.

    Returns:
        What results.json contains.

    Raises:
        ValueError: the model, its package or the data is missing, or the weights are not the known ones; a
            seed is negative.
    """
    check_seeds(settings.seed, settings.seed + settings.runs - 1)
    folder = encoder_folder(settings.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = Task.load(tokenizer, settings.intents, max_length=64)
    encoder = AutoModel.from_pretrained(folder)
    train, test = (embed(encoder, task, part) for part in (task.train, task.test))
    print(task.description)
    print("The sentence model is frozen, its embeddings are stored; what is trained is on top of them\n")
    cases, seeds = [], range(settings.seed, settings.seed + settings.runs)
    for width, share in itertools.product(settings.widths, settings.wrong_labels):
        runs: dict[str, list[dict[str, float]]] = {PLAIN: [], LOWER: [], FAM: []}
        for seed in seeds:
            given = Stored(train.features, with_wrong_labels(train.labels, share, len(task.names), seed))
            for name, found in runs.items():
                kind = FAMTrainer if name == FAM else Trainer
                rate = settings.learning_rate / (3 if name == LOWER else 1)
                here = replace(settings, learning_rate=rate)
                found.append(train_once(kind, given, test, len(task.names), width, seed, here))
        told = {"width": width, "fam_lambda": settings.fam(width).fam_lambda, "wrong_labels": share}
        cases.append({**told, "runs": runs})
        print(format_case(cases[-1]), end="\n\n")
    print("One task. Others, rivals, and where it does not help: 'Should I use this?' in the documentation.\n")
    result = {"cases": cases, "seeds": list(seeds), "versions": versions()}
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    file = settings.output_dir / "results.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"All numbers: {file}")
    return result


def embed(encoder: Any, task: Task, examples: Sequence[dict[str, Any]]) -> Stored:
    """Mean over the tokens of each text, without dropout."""
    features, labels = [], []
    with evaluating(encoder), torch.no_grad():
        for batch in task.batches(examples):
            labels.append(batch.pop("labels").numpy())
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = encoder(**on_device(batch, encoder)).last_hidden_state
            features.append((hidden * mask).sum(1) / mask.sum(1))
    return Stored(torch.cat(features), np.concatenate(labels))


def with_wrong_labels(labels: NDArray[np.int64], share: float, classes: int, seed: int) -> NDArray[np.int64]:
    """A share of the labels replaced by another class, drawn evenly.

    Examples:
        >>> labels = np.arange(6) % 3
        >>> int((with_wrong_labels(labels, 0.5, 3, seed=0) != labels).sum())
        3
    """
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(labels))[: round(share * len(labels))]
    found = labels.copy()
    found[chosen] = (found[chosen] + random.integers(1, classes, len(chosen))) % classes
    return found


def train_once(
    kind: type[Trainer], train: Stored, test: Stored, classes: int, width: int, seed: int, settings: FrozenSettings
) -> dict[str, float]:
    """One training, and its scores on the test questions."""
    set_seed(seed)
    model = SmallNetwork(train.features.shape[1], width, classes)
    given: dict[str, Any] = {"fam_args": settings.fam(width)} if issubclass(kind, FAMTrainer) else {}
    trainer = kind(
        model=model,
        args=TrainingArguments(
            output_dir=str(settings.output_dir),
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            seed=seed,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=train.examples(),
        **given,
    )
    trainer.remove_callback(PrinterCallback)  # the tables say it
    trainer.train()
    with evaluating(model), torch.no_grad():
        logits = model(test.features.to(trainer.args.device))["logits"].cpu().numpy()
    return {"accuracy": 100 * accuracy(logits, test.labels), "nll": negative_log_likelihood(logits, test.labels)}


def format_case(case: dict[str, Any]) -> str:
    """Mean and standard deviation of all, and the paired differences of FAM with their standard errors."""
    count = len(case["runs"][PLAIN])
    network = f"two layers, fam_layer={REPRESENTATION!r}" if case["width"] else "a linear classifier"
    strength = case["fam_lambda"]
    told = ", the defaults of FAM" if strength is None else f", fam_lambda={strength:g}"
    lines = [f"{network}{told}; {case['wrong_labels']:.0%} of the training labels wrong, {count} seeds"]
    lines.append(f"  {'':<24}{PLAIN:>15}{LOWER:>18}{FAM:>15}   minus Trainer     minus a third   ± standard error")
    for key, name in SCORES.items():
        plain, lower, fam = ([run[key] for run in case["runs"][kind]] for kind in (PLAIN, LOWER, FAM))
        digits = 1 if key == "accuracy" else 3
        cells = [f"{statistics.mean(v):.{digits}f} ± {spread(v):.{digits}f}" for v in (plain, lower, fam)]
        cells += [
            f"{mean:+.{digits + 1}f} ± {error:.{digits + 1}f}"
            for mean, error in (paired(v, fam) for v in (plain, lower))
        ]
        lines.append(f"  {name:<24}{cells[0]:>15}{cells[1]:>18}{cells[2]:>15}   {cells[3]:<18}{cells[4]}")
    return "\n".join(lines)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Mean of the differences seed by seed, second minus first, and its standard error.

    Examples:
        >>> paired([1.0, 2.0, 3.0], [2.0, 3.0, 5.0])
        (1.3333333333333333, 0.3333333333333333)
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return statistics.mean(differences), spread(differences) / math.sqrt(len(differences))


def spread(values: Sequence[float]) -> float:
    """Standard deviation; not a number for a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan
