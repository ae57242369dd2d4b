"""Why does the hidden layer's kappa protect from wrong labels on a frozen trunk, and hardly when the trunk is trained?

    python recipes/comparison/why.py --data DATA --jobs 2

Banking77's first 20 classes, ten examples each, a fifth of them with a wrong label; more and more of MiniLM is trained.
After training: which wrong labels were learned, and did the trunk move these examples to the wrong class, so that the
layer has nothing left to resist with? Appends to why/runs.jsonl, skips what is there and writes docs/generated/why.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import tasks
from harness.embeddings import embed
from harness.execute import evaluate
from harness.methods import Method, make
from harness.paired import compare
from harness.regimes import REGIMES
from harness.results import append_line, read_lines
from numpy.typing import NDArray
from run import quiet
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from hf_fam import RelativeFlatness

HERE = Path(__file__).parent
TASK = {"name": "banking77", "shots": 10, "classes": 20, "validation": 400, "test": 800}
NOISE = 0.2
FINETUNE = {"epochs": 15, "learning_rate": 5e-4}
# How much of the trunk is trained, from nothing to all of it; each with a learning rate that learns the training set.
TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "frozen, new head": ("frozen_head", {"tokens": "mean", "hidden": "new"}),
    "frozen, pooler": ("frozen_head", {}),
    "2 blocks": ("finetune", {**FINETUNE, "trainable": "blocks 2"}),
    "LoRA": ("finetune", {"epochs": 15, "learning_rate": 2e-3, "trainable": "lora 8"}),
    "all": ("finetune", FINETUNE),
}
LAYER = {"layer": "representation", "estimator": "gauss_newton"}
CENTRED = {**LAYER, "features": "centred", "strength": 0.01}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {}),
    "kappa": ("fam", CENTRED),
    "kappa, tail only": ("fam_reach", {**CENTRED, "reach": "tail"}),
}


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
    with ProcessPoolExecutor(max(options.jobs, 1), context, initializer=quiet, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(look, *run, options.data, options.cache) for run in wanted]):
            append_line(options.results, future.result())
            print(future.result(), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page(read_runs(options.results)), encoding="utf-8")


def read_runs(file: Path) -> list[dict[str, Any]]:
    """Return one record a run."""
    records: dict[Any, dict[str, Any]] = {}
    for record in read_lines(file) if file.exists() else ():
        records.setdefault(key(record), record)
    return list(records.values())


def key(record: dict[str, Any]) -> tuple[str, str, int]:
    return record["trunk"], record["method"], record["seed"]


def useful(trunk: str, method: str) -> bool:
    """On a frozen trunk the tail is all there is."""
    return not (trunk.startswith("frozen") and method == "kappa, tail only")


def look(trunk: str, method: str, seed: int, data: Path, cache: Path) -> dict[str, Any]:
    """Train once, and measure the trained model."""
    noisy, clean = (tasks.load(tasks.Task(**TASK, noise=noise), data, seed) for noise in (NOISE, 0.0))
    regime, settings = TRUNKS[trunk]
    watched = Watched(make(*METHODS[method]))
    chosen = REGIMES[regime].Settings(**settings)
    outcome = REGIMES[regime].run(noisy, chosen, watched, seed, cache)
    scores = evaluate(outcome, noisy)
    features, kappa = look_at_layer(watched.model, watched.batches(noisy, chosen, cache), seed)
    labels, true = noisy.train.labels, clean.train.labels
    wrong = labels != true
    return {
        "trunk": trunk, "method": method, "seed": seed, "accuracy": scores["test"]["accuracy"],
        "nll": scores["test"]["nll"], "train_loss": scores["train_loss"], "kappa": kappa,
        "wrong_learned": float((outcome.logits["train"].argmax(-1) == labels)[wrong].mean()),
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


class Watched:
    """A method that keeps the model that it trains, and its Trainer."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.model: nn.Module
        self.fine_tuning: Trainer | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def attach(self, model: nn.Module, seed: int) -> None:
        self.model = model
        self._method.attach(model, seed)

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        self.model = kwargs["model"]
        self.fine_tuning = self._method.trainer(arguments, **kwargs)
        return self.fine_tuning

    def batches(self, split: tasks.Split, settings: Any, cache: Path) -> Iterator[Callable[[], Tensor]]:
        """The forward passes of the training examples, each with its loss."""
        if self.fine_tuning is None:
            x = embed(split.train.inputs, cache, settings.tokens)
            yield lambda: F.cross_entropy(self.model(x), torch.from_numpy(split.train.labels))
            return
        examples, collate = self.fine_tuning.train_dataset, self.fine_tuning.data_collator
        for start in range(0, len(split.train), 50):
            batch = collate([examples[k] for k in range(start, min(start + 50, len(split.train)))])
            yield lambda batch=batch: self.model(**batch).loss


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
                difference = compare(*([run[s]["accuracy"] for s in both] for run in (runs, of["plain"])))
                change = f"{100 * difference.mean:+.1f}"
                p = f"{difference.t:.3f}" if len(both) > 1 else ""
            lines.append(
                f"| {trunk} | {method} | {len(runs)} | {100 * mean('accuracy'):.1f} | {change} | {p} | "
                f"{mean('nll'):.3f} | {100 * mean('wrong_learned'):.0f} % | {100 * mean('wrong_moved'):.0f} % | "
                f"{mean('kappa'):.3g} | {100 * mean('shared'):.0f} % |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
