"""Train the networks of the study to one training loss and measure them, one line of JSON a network.

    python recipes/flatness_study/run.py --data PATH/cifar10 --output out/flatness_study/runs.jsonl --jobs 2
    python recipes/flatness_study/analysis.py out/flatness_study/runs.jsonl --output out/flatness_study

Interrupted, it goes on with what is missing; with ``--minutes``, it begins no network after that time. Networks that do
not reach the loss are kept, too, and marked.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core

import argparse
import copy
import itertools
import json
import math
import multiprocessing
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measures import measured
from network import Setting, Split, evaluate, read_cifar10, train

from hf_fam.landscape.reparametrization import rescale_randomly

GRID: dict[str, tuple[Any, ...]] = {
    "optimizer": ("sgd", "adam"),
    "learning_rate": (0.3, 1.0, 3.0),  # in units of the optimizer's
    "batch_size": (32, 128, 512),
    "weight_decay": (0.0, 1.0),
    "seed": (0, 1, 2),
}
UNITS = {"sgd": (0.01, 5e-4), "adam": (1e-3, 5e-2)}  # learning rate and weight decay

# The rescaled network has factors between 1/10 and 10 for every neuron and channel.
SPREAD = 1.0

_DATA: tuple[Split, Split] | None = None


def settings(smoke: bool = False) -> list[Setting]:
    """All trainings: 2 x 3 x 3 x 2 x 3 = 108."""
    grid = GRID if not smoke else {**{k: v[:1] for k, v in GRID.items()}, "seed": (0, 1)}
    found = []
    for optimizer, rate, batch, decay, seed in itertools.product(*grid.values()):
        unit_rate, unit_decay = UNITS[optimizer]
        found.append(Setting(optimizer, rate * unit_rate, batch, decay * unit_decay, seed))
    # An interrupted study has every setting once before any twice, slow settings last, and else a random order: what is
    # there is no selection by optimizer or learning rate.
    random.Random(0).shuffle(found)
    return sorted(found, key=lambda s: (is_slow(s), s.seed))


def is_slow(setting: Setting) -> bool:
    """Return True if the setting takes at least 270 epochs to a loss of 0.1, or never reached it."""
    kind = (setting.optimizer, setting.learning_rate, setting.batch_size)
    never = kind in {("sgd", 0.03, 32), ("adam", 3e-4, 512)} or (kind == ("sgd", 0.01, 32) and not setting.weight_decay)
    return never or kind == ("sgd", 0.003, 512)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train-15k.parquet and test.parquet")
    parser.add_argument("--output", type=Path, default=Path("out/flatness_study/runs.jsonl"))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--train-items", type=int, default=5_000)
    parser.add_argument("--target", type=float, default=0.07, help="training loss of all networks (default: 0.07)")
    parser.add_argument("--most-epochs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no network after so many minutes")
    parser.add_argument("--smoke", action="store_true", help="two networks: does it run? The numbers mean nothing")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    done = finished(options.output)
    missing = [s for s in settings(options.smoke) if s.key not in done]
    print(f"{len(done)} networks are there, {len(missing)} to go", flush=True)
    deadline = time.time() + 60 * options.minutes
    work = [(s, options.target, options.most_epochs, deadline) for s in missing]
    context = multiprocessing.get_context("spawn")
    with (
        context.Pool(options.jobs, _begin, (options.data, options.train_items)) as pool,
        options.output.open("a", encoding="utf-8") as file,
    ):
        records = (record for record in pool.imap_unordered(one_network, work) if record is not None)
        for count, record in enumerate(records, 1):
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{count}/{len(work)} {record['key']}: {_summary(record)}", flush=True)


def finished(path: Path) -> set[str]:
    """Keys of the networks in the file; a line that was cut off by an interruption is removed."""
    if not path.exists():
        return set()
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = []
    for line in lines:
        try:
            whole.append((line, json.loads(line)["key"]))
        except (json.JSONDecodeError, KeyError):
            print(f"a damaged line of {path} is removed", file=sys.stderr)
    if len(whole) < len(lines):
        path.write_text("".join(line + "\n" for line, _ in whole), encoding="utf-8")
    return {key for _, key in whole}


def _begin(folder: Path, train_items: int) -> None:
    global _DATA
    torch.set_num_threads(1)
    _DATA = read_cifar10(folder, train_items)


def one_network(work: tuple[Setting, float, int, float]) -> dict[str, Any] | None:
    """Train, evaluate, measure, rescale, measure again; None after the deadline."""
    setting, target, most_epochs, deadline = work
    if time.time() > deadline:
        return None
    assert _DATA is not None
    data, test = _DATA
    started = time.perf_counter()
    model, outcome = train(setting, data, target, most_epochs)
    trained = time.perf_counter()
    (train_loss, train_accuracy), (test_loss, test_accuracy) = evaluate(model, data), evaluate(model, test)
    record: dict[str, Any] = {
        "key": setting.key, **vars(setting), **outcome, "target": target, "train_items": len(data.labels),
        "train_loss": train_loss, "train_accuracy": train_accuracy, "test_loss": test_loss,
        "test_accuracy": test_accuracy, "gap": test_loss - train_loss, "seconds_training": trained - started,
    }  # fmt: skip
    if outcome["converged"]:
        model.eval()
        record["before"] = measured(model, data)
        rescaled = copy.deepcopy(model).double()
        rescale_randomly(rescaled, data.images[:100].double(), spread=SPREAD, seed=setting.seed)
        record["after"] = measured(rescaled.float(), data)
    record["seconds_measuring"] = time.perf_counter() - trained
    return record


def _summary(record: dict[str, Any]) -> str:
    if not record["converged"]:
        return f"not converged, loss {record['train_loss']:.3g} after {record['epochs']:.0f} epochs"
    return (
        f"gap {record['gap']:.3f}, kappa of fc2 {record['before']['fc2']['kappa']:.4g}, {record['epochs']:.0f} epochs, "
        f"{record['seconds_training']:.0f} + {record['seconds_measuring']:.0f} s"
    )


if __name__ == "__main__":
    main()
