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
from .task import Task, encoder_folder, in_evaluation_mode, to_model_device

# Plain training at a third of the learning rate, a second baseline.
LOWER_RATE = "Trainer, a third"
SCORES = {"accuracy": "accuracy, %", "nll": "negative log-likelihood"}


@dataclass(frozen=True)
class FrozenSettings:
    """The settings that all runs of this demo share.

    Attributes:
        output_dir: folder for the results.
        seed: the first of the seeds, which set the initial weights, the order of the data, and the wrong labels.
        runs: number of seeds.
        model: folder of an encoder with its tokenizer; None for all-MiniLM-L6-v2 from its package.
        intents: number of intents, 30 at most, with 10 training examples each.
        wrong_labels: fractions of training examples with a wrong label, one table for each.
        epochs: epochs of each training.
        learning_rate: the highest one, which falls linearly. Plain training also runs at a third of it.
        batch_size: training examples in a step.
        widths: width of the hidden layer, for each network; 0 is a linear classifier.
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
        """Return settings for a quick check that everything works."""
        return cls(**{"intents": 5, "epochs": 3, "runs": 2, **changes})

    def fam(self, width: int) -> FAMArguments:
        """Return FAM's arguments for a network with a hidden layer of some width.

        For a linear classifier, they contain at most the strength.
        """
        if width:
            return FAMArguments(fam_layer=REPRESENTATION, fam_lambda=self.hidden_lambda)
        return FAMArguments(fam_lambda=self.head_lambda)


class SmallNetwork(nn.Module):
    """One or two layers on stored features. ``fam_layer="representation"`` selects ``dense``.

    Args:
        features: number of features of an example.
        width: width of the hidden layer; 0: a linear classifier.
        classes: number of logits.
    """

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(features, width) if width else None
        self.classifier = nn.Linear(width or features, classes)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the logits, and the loss if there are labels."""
        logits = self.classifier(features if self.dense is None else self.dense(features).tanh())
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


@dataclass(frozen=True)
class EmbeddedTexts:
    """Embedded texts, (N, features), and their labels, (N,)."""

    features: Tensor
    labels: NDArray[np.int64]

    def examples(self) -> list[dict[str, Any]]:
        """Return examples in the form that a Trainer takes."""
        return [{"features": x, "labels": int(y)} for x, y in zip(self.features, self.labels, strict=True)]


def run_frozen_demo(settings: FrozenSettings) -> dict[str, Any]:
    """Train all networks with both trainers, print tables, save the numbers.

    Every network is trained for every fraction of wrong labels and every seed.

    Plain training has a second learning rate, because a lower learning rate may give the same gain.

    Args:
        settings: settings of all runs.

    Returns:
        The contents of results.json.

    Raises:
        ValueError: the model, its package or the data is missing, the weights have another checksum, or a seed is out
            of range.
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
    for width, fraction in itertools.product(settings.widths, settings.wrong_labels):
        runs: dict[str, list[dict[str, float]]] = {PLAIN: [], LOWER_RATE: [], FAM: []}
        for seed in seeds:
            noisy_train = EmbeddedTexts(
                train.features, with_wrong_labels(train.labels, fraction, len(task.names), seed)
            )
            for name, scores in runs.items():
                trainer_class = FAMTrainer if name == FAM else Trainer
                learning_rate = settings.learning_rate / (3 if name == LOWER_RATE else 1)
                run_settings = replace(settings, learning_rate=learning_rate)
                scores.append(train_once(trainer_class, noisy_train, test, len(task.names), width, seed, run_settings))
        description = {"width": width, "fam_lambda": settings.fam(width).fam_lambda, "wrong_labels": fraction}
        cases.append({**description, "runs": runs})
        print(format_case(cases[-1]), end="\n\n")
    print("One task. Others, rivals, and where it does not help: 'Should I use this?' in the documentation.\n")
    result = {"cases": cases, "seeds": list(seeds), "versions": versions()}
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    file = settings.output_dir / "results.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"All numbers: {file}")
    return result


def embed(encoder: Any, task: Task, examples: Sequence[dict[str, Any]]) -> EmbeddedTexts:
    """Return the mean over the tokens of each text, without dropout."""
    features, labels = [], []
    with in_evaluation_mode(encoder), torch.no_grad():
        for batch in task.batches(examples):
            labels.append(batch.pop("labels").numpy())
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = encoder(**to_model_device(batch, encoder)).last_hidden_state
            features.append((hidden * mask).sum(1) / mask.sum(1))
    return EmbeddedTexts(torch.cat(features), np.concatenate(labels))


def with_wrong_labels(labels: NDArray[np.int64], fraction: float, classes: int, seed: int) -> NDArray[np.int64]:
    """Return the labels with a fraction of them replaced by another class.

    The other class is drawn uniformly.

    Examples:
        >>> labels = np.arange(6) % 3
        >>> int((with_wrong_labels(labels, 0.5, 3, seed=0) != labels).sum())
        3
    """
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(labels))[: round(fraction * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (noisy[chosen] + random.integers(1, classes, len(chosen))) % classes
    return noisy


def train_once(
    trainer_class: type[Trainer],
    train: EmbeddedTexts,
    test: EmbeddedTexts,
    classes: int,
    width: int,
    seed: int,
    settings: FrozenSettings,
) -> dict[str, float]:
    """Train once, and return the scores on the test questions."""
    set_seed(seed)
    model = SmallNetwork(train.features.shape[1], width, classes)
    fam_options: dict[str, Any] = {"fam_args": settings.fam(width)} if issubclass(trainer_class, FAMTrainer) else {}
    trainer = trainer_class(
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
        **fam_options,
    )
    trainer.remove_callback(PrinterCallback)  # the tables contain its numbers
    trainer.train()
    with in_evaluation_mode(model), torch.no_grad():
        logits = model(test.features.to(trainer.args.device))["logits"].cpu().numpy()
    return {"accuracy": 100 * accuracy(logits, test.labels), "nll": negative_log_likelihood(logits, test.labels)}


def format_case(case: dict[str, Any]) -> str:
    """Return a table of means with standard deviations, and of FAM's differences.

    Differences are paired by seed and have standard errors.
    """
    count = len(case["runs"][PLAIN])
    network = f"two layers, fam_layer={REPRESENTATION!r}" if case["width"] else "a linear classifier"
    strength = case["fam_lambda"]
    fam_setting = ", the defaults of FAM" if strength is None else f", fam_lambda={strength:g}"
    lines = [f"{network}{fam_setting}; {case['wrong_labels']:.0%} of the training labels wrong, {count} seeds"]
    lines.append(f"  {'':<24}{PLAIN:>15}{LOWER_RATE:>18}{FAM:>15}   minus Trainer     minus a third   ± standard error")
    for key, name in SCORES.items():
        plain, lower, fam = ([run[key] for run in case["runs"][kind]] for kind in (PLAIN, LOWER_RATE, FAM))
        digits = 1 if key == "accuracy" else 3
        cells = [f"{statistics.mean(v):.{digits}f} ± {standard_deviation(v):.{digits}f}" for v in (plain, lower, fam)]
        cells += [
            f"{mean:+.{digits + 1}f} ± {error:.{digits + 1}f}"
            for mean, error in (paired_difference(v, fam) for v in (plain, lower))
        ]
        lines.append(f"  {name:<24}{cells[0]:>15}{cells[1]:>18}{cells[2]:>15}   {cells[3]:<18}{cells[4]}")
    return "\n".join(lines)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error of the paired differences.

    They are taken seed by seed, second minus first.

    Examples:
        >>> paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 5.0])
        (1.3333333333333333, 0.3333333333333333)
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    return statistics.mean(differences), standard_deviation(differences) / math.sqrt(len(differences))


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation; NaN for a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan
