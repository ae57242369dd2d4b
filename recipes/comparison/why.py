"""Why does the hidden layer's kappa protect from wrong labels on a frozen trunk, and hardly when the trunk is trained?

    python recipes/comparison/why.py --data DATA --jobs 2

Banking77's first 20 classes, ten examples each, a fifth of them with a wrong label; more and more of MiniLM is trained.
After training: which wrong labels were learned, and did the trunk move these examples to the wrong class, so that the
layer has nothing left to resist with? Appends to why/runs.jsonl, skips what is there and writes docs/generated/why.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.regimes import REGIMES
from harness.tail_only import TailOnly
from harness.tasks import Task, load
from harness.trainers import Trainers
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from transformers import Trainer

from hf_fam import RelativeFlatness
from hf_fam.compare.training import fresh_trainer
from hf_fam.measure.classification_metrics import accuracy, negative_log_likelihood
from hf_fam.methods import Method, Plain
from hf_fam.methods.fam import FAM

HERE = Path(__file__).parent
TASK = {"name": "banking77", "shots": 10, "classes": 20, "validation": 400, "test": 800}
NOISE = 0.2
LAYER = {"layer": "representation", "estimator": "gauss_newton"}
STRENGTH = 0.01
HEAD = {"epochs": 120, "learning_rate": 1e-3}
FINETUNE = {"epochs": 15, "learning_rate": 5e-4}
# How much of the trunk is trained, from nothing to all of it; each with a learning rate that learns the training set.
TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen, new head": ("head", {**HEAD, "hidden": "384"}),
    "frozen, pooler": ("head", {**HEAD, "tokens": "first", "hidden": "pooler"}),
    "2 blocks": ("finetune", {**FINETUNE, "trainable": "blocks 2"}),
    "LoRA": ("finetune", {"epochs": 15, "learning_rate": 2e-3, "trainable": "lora 8"}),
    "all": ("finetune", FINETUNE),
}
METHODS: dict[str, type[Method]] = {"plain": Plain, "kappa": FAM, "kappa, tail only": TailOnly}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("HF_FAM_DATA"), help="default: $HF_FAM_DATA")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; 0: the table alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "why" / "runs.jsonl")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "docs" / "generated" / "why.md")
    parser.add_argument("--cache", type=Path, default=Path("out/comparison"), help="folder for frozen embeddings")
    options = parser.parse_args(arguments)
    done = {key(r) for r in read_runs(options.results)}
    wanted = [
        (t, m, s) for s in options.seeds for t in TRUNKS for m in METHODS if useful(t, m) and (t, m, s) not in done
    ]
    wanted = wanted if options.jobs else []
    if wanted and options.data is None:
        parser.error("give --data FOLDER, or set HF_FAM_DATA")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(options.jobs, 1), context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(look, *run, options.data, options.cache) for run in wanted]):
            with open(options.results, "a", encoding="utf-8") as out:
                out.write(json.dumps(future.result(), allow_nan=False) + "\n")
            print(future.result(), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(read_runs(options.results)), encoding="utf-8")


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Return one record a run."""
    records: dict[Any, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        record = json.loads(line)
        records.setdefault(key(record), record)
    return list(records.values())


def key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["trunk"], record["method"], record["seed"]


def useful(trunk: str, method: str) -> bool:
    """On a frozen trunk the tail is all there is."""
    return not (trunk.startswith("frozen") and method == "kappa, tail only")


def look(trunk: str, method: str, seed: int, data: Path, cache: Path) -> dict[str, Any]:
    """Train once, and measure the trained model."""
    regime, settings = TRUNKS[trunk]
    task = Task(**TASK, noise=NOISE)
    fam = {**LAYER, "center": True}
    trainers = Trainers(task, regime, REGIMES[regime].Settings(**settings, fam=fam), data, cache)
    trainer = fresh_trainer(trainers, seed)
    kind = METHODS[method]
    kind(None if kind is Plain else STRENGTH).apply(trainer)
    with tempfile.TemporaryDirectory() as folder:
        trainer.args.output_dir = folder
        trainer.train()
        trainer.args.train_sampling_strategy = "random"  # by length would reorder what is predicted
        train, test = (trainer.predict(part) for part in (trainer.train_dataset, trainers.test_dataset()))
    labels, true = load(task, data, seed).train.labels, load(Task(**TASK), data, seed).train.labels
    features, kappa = look_at_layer(trainer.model, batches(trainer), seed)
    wrong = labels != true
    return {
        "trunk": trunk, "method": method, "seed": seed, "accuracy": accuracy(test.predictions, test.label_ids),
        "nll": negative_log_likelihood(test.predictions, test.label_ids),
        "train_loss": negative_log_likelihood(train.predictions, train.label_ids), "kappa": kappa,
        "wrong_learned": float((train.predictions.argmax(-1) == labels)[wrong].mean()),
        "wrong_moved": float(nearer(features, labels, true)[wrong].mean()),
        "shared": float(np.square(features.mean(0)).sum() / np.square(features).sum(-1).mean()),
    }  # fmt: skip


def nearer(features: NDArray[np.floating], labels: NDArray[np.int64], true: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the features of an item lie nearer to the center of its labelled class than to that of its true one.

    Centers are those of the items whose label is right.
    """
    centers = np.stack([features[(labels == c) & (true == c)].mean(0) for c in range(true.max() + 1)])
    distances = np.linalg.norm(features[:, None] - centers, axis=-1)
    rows = np.arange(len(labels))
    return distances[rows, labels] < distances[rows, true]


def batches(trainer: Trainer) -> Iterator[Callable[[], Tensor]]:
    """Yield the forward passes of the training examples, each with its loss."""
    model, items = trainer.model, trainer.train_dataset
    for start in range(0, len(items), 50):
        batch = trainer.data_collator([items[k] for k in range(start, min(start + 50, len(items)))])
        yield lambda batch=batch: model(**batch.to(model.device) if hasattr(batch, "to") else batch)["loss"]


def look_at_layer(
    model: nn.Module, batches: Iterable[Callable[[], Tensor]], seed: int
) -> tuple[NDArray[np.floating], float]:
    """The representation layer's features, and its kappa by 16 Gauss-Newton probes, in evaluation mode."""
    model.eval()
    flatness = RelativeFlatness(model, **LAYER, probes=16, generator=torch.Generator().manual_seed(seed))
    features: list[Tensor] = []
    kappas = []
    hook = flatness.layer.module.register_forward_pre_hook(lambda layer, args: features.append(args[0].detach()))
    for forward in batches:
        with flatness.capture():
            loss = forward()
        kappas.append(float(flatness(loss).detach()) * len(features[-1]))
    hook.remove()
    flatness.detach()
    rows = torch.cat(features)
    return rows.numpy(), sum(kappas) / len(rows)


def page(records: list[dict[str, Any]]) -> str:
    """Mean over seeds; differences from plain training with the paired t test."""
    lines = [
        "<!-- made by recipes/comparison/why.py -->\n",
        "| trained of the trunk | method | seeds | accuracy | change | p | NLL | wrong labels learned | ... and moved "
        "to the wrong class | kappa | shared |",
        "| --- | --- |" + " ---: |" * 9,
    ]
    for trunk in TRUNKS:
        of = {m: {r["seed"]: r for r in records if r["trunk"] == trunk and r["method"] == m} for m in METHODS}
        for method, runs in of.items():
            if not runs:
                continue

            def mean(name: str, runs: dict[int, Any] = runs) -> float:
                return float(np.mean([r[name] for r in runs.values()]))

            both = [s for s in runs if s in of["plain"]]
            change, p = "", ""
            if method != "plain" and both:
                pair = [np.array([run[s]["accuracy"] for s in both]) for run in (runs, of["plain"])]
                change = f"{100 * np.mean(pair[0] - pair[1]):+.1f}"
                p = f"{stats.ttest_rel(*pair).pvalue:.3f}" if len(both) > 1 else ""
            lines.append(
                f"| {trunk} | {method} | {len(runs)} | {100 * mean('accuracy'):.1f} | {change} | {p} | "
                f"{mean('nll'):.3f} | {100 * mean('wrong_learned'):.0f} % | {100 * mean('wrong_moved'):.0f} % | "
                f"{mean('kappa'):.3g} | {100 * mean('shared'):.0f} % |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
