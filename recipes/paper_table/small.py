"""The CIFAR-10 row of the FAM paper's table on two CPU cores: a small ResNet from scratch, 15,000 images. Exploratory.

    python recipes/paper_table/small.py --data DATA      # trains what is missing, and writes the table
    python recipes/paper_table/small.py                  # only writes the table

Plain training, FAM with hf_fam's default strength, FAM with the paper's strength on κ (README.md says how it is
computed), and SAM. All have the released scripts' momentum, weight decay, batch size and cosine, one learning rate,
and images that are moved and mirrored at random. The accuracy is that of the last epoch. DATA has the folder
``cifar10``. Plain training takes about three minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
import transformers
from scipy import stats
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

sys.path.insert(0, str(Path(__file__).parents[1] / "comparison"))
from harness.tasks import read

from hf_fam.methods import method_called

HERE = Path(__file__).parent
GENERATED = HERE.parents[1] / "docs" / "generated"
SEEDS = (0, 1, 2)
METHODS = {
    "plain": ("plain", None),
    "FAM": ("fam", 0.003),
    "FAM, the paper's strength": ("fam", 3e-5),
    "SAM": ("sam", 0.05),
}
EPOCHS, LEARNING_RATE = 10, 0.05
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(data: Path) -> tuple[Any, Any]:
    """Return the standardized images and labels for training and for testing."""
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    parts = []
    for part in read("cifar10", data):
        pixels = (torch.from_numpy(part.inputs.copy()).float() / 255 - mean) / deviation
        parts.append([{"pixel_values": x, "labels": int(y)} for x, y in zip(pixels, part.labels, strict=True)])
    return parts[0], parts[1]


def moved_and_mirrored(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch of images that are mirrored or not and moved by up to four pixels, each on its own."""
    pixels = F.pad(torch.stack([item["pixel_values"] for item in items]), (4, 4, 4, 4))
    flip = torch.rand(len(items), 1, 1, 1) < 0.5
    pixels = torch.where(flip, pixels.flip(-1), pixels)
    corners = torch.randint(9, (len(items), 2)).tolist()
    moved = torch.stack([x[:, i : i + 32, j : j + 32] for x, (i, j) in zip(pixels, corners, strict=True)])
    return {"pixel_values": moved, "labels": torch.tensor([item["labels"] for item in items])}


def train(name: str, seed: int, train_items: Any, test_items: Any, epochs: float = EPOCHS) -> dict[str, Any]:
    """Train one network, and return its record."""
    method, strength = METHODS[name]
    transformers.set_seed(seed)
    config = networks.CifarResNetConfig(
        blocks=(1, 1, 1, 1), channels=(16, 32, 64, 128), embedding_size=64, num_labels=10
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, per_device_eval_batch_size=500, seed=seed,
            learning_rate=LEARNING_RATE, optim="sgd", optim_args="momentum=0.9", weight_decay=5e-4, max_grad_norm=0.0,
            lr_scheduler_type="cosine", save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            networks.CifarResNet(config), args, train_dataset=train_items, data_collator=moved_and_mirrored
        )
        method_called(method)(strength).apply(trainer)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        trainer.data_collator = transformers.default_data_collator
        predicted: Any = trainer.predict(test_items)
    logits, labels = predicted.predictions.astype(np.float64), predicted.label_ids
    log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    return {
        "method": name, "seed": seed, "epochs": epochs, "accuracy": float(100 * (logits.argmax(1) == labels).mean()),
        "nll": float(-log_p[np.arange(len(labels)), labels].mean()), "cpu_seconds": seconds,
    }  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """Return means over seeds, differences to plain training with 95 % intervals, and seconds."""
    lines = ["| | accuracy | minus plain | NLL | minus plain | time of a training |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    values = {name: sorted((r for r in records if r["method"] == name), key=lambda r: r["seed"]) for name in METHODS}
    plain = values["plain"]
    for name, own in values.items():
        cells = [name]
        for key, form in (("accuracy", ".1f"), ("nll", ".3f")):
            mean = np.mean([r[key] for r in own])
            gain = np.array([a[key] - b[key] for a, b in zip(own, plain, strict=True)])
            half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
            difference = f"{gain.mean():+{form}} ({gain.mean() - half:+{form}} to {gain.mean() + half:+{form}})"
            cells += [f"{mean:{form}}", "" if name == "plain" else difference]
        ratio = np.mean([r["cpu_seconds"] for r in own]) / np.mean([r["cpu_seconds"] for r in plain])
        lines.append(f"| {' | '.join(cells)} | {ratio:.2f} |")
    note = f"{len(plain)} seeds, 95 % intervals; the time is the processor's, as a ratio to plain training."
    return "\n".join([*lines, "", note, ""])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data sets; without it, only the table is written")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "small.jsonl")
    parser.add_argument("--output", type=Path, default=GENERATED / "paper_row.md")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds to train now")
    options = parser.parse_args(arguments)
    file: Path = options.results
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    if options.data is not None:
        transformers.logging.set_verbosity_error()
        file.parent.mkdir(parents=True, exist_ok=True)
        train_items, test_items = images(options.data)
        done = {(r["method"], r["seed"]) for r in records}
        for seed in options.seeds:
            for name in METHODS:
                if (name, seed) not in done:
                    records.append(train(name, seed, train_items, test_items, options.epochs))
                    with open(file, "a", encoding="utf-8") as stream:
                        stream.write(json.dumps(records[-1]) + "\n")
                    print(records[-1], flush=True)
    options.output.write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
