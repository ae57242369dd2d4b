"""Plans: which runs are wanted.

    exploratory: true
    seeds: [0, 1, 2]
    regimes: {frozen_mlp: {epochs: 40}}          # settings that differ from the regime's own, or a list of such
    tasks: [{name: banking77, shots: 10, settings: {learning_rate: 0.0003}}]  # settings of this task alone, if any
    methods:
      - {method: plain}
      - {method: fam, with: {layer: head, estimator: closed_form}, grid: {strength: [0.001, 0.01]}}

Every regime is combined with every task that it can read, every method with every point of its grid, and every seed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from .methods import METHODS
from .regimes import REGIMES
from .tasks import Task

# The plans that decide a claim of the documentation, and the others.
PLANS = Path(__file__).parents[1] / "plans"
FOLDERS = (PLANS, PLANS / "archive")

# Which tasks a regime can read: those here, or all that no regime here reads.
IMAGES = {
    "small_cnn": ("fashion_mnist",),
    "scratch_images": ("fashion_mnist", "cifar10"),
    "scratch_vit": ("fashion_mnist", "cifar10"),
    "finetune_images": ("fashion_mnist", "cifar10"),
    "frozen_images": ("fashion_mnist", "cifar10"),
}


@dataclass(frozen=True)
class Run:
    """One training, fully described."""

    task: Task
    regime: str
    settings: Any
    method: str
    configuration: dict[str, Any]
    seed: int
    exploratory: bool = True

    def describe(self) -> dict[str, Any]:
        """What is written in front of the results."""
        return {
            "task": self.task.key,
            "metric": self.task.metric,
            "regime": self.regime,
            "settings": asdict(self.settings),
            "method": self.method,
            "configuration": self.configuration,
            "seed": self.seed,
            "exploratory": self.exploratory,
        }


def key(record: dict[str, Any]) -> str:
    """What makes a run the same as another; the plan that asks for it does not."""
    fields = ("task", "regime", "settings", "method", "configuration", "seed")
    return json.dumps([record[f] for f in fields], sort_keys=True)


def find_plan(name: str) -> Path:
    """Return the file of a plan, by its name or its path.

    Raises:
        FileNotFoundError: there is no such plan.
    """
    places = [Path(name)] if name.endswith(".yaml") else [folder / f"{name}.yaml" for folder in FOLDERS]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"there is no plan {name}")


def read_plan(path: Path) -> list[Run]:
    """All runs of a plan, seed by seed, so that an interrupted plan has something of everything."""
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(plan) - {"exploratory", "seeds", "regimes", "tasks", "methods"}
    if unknown:
        raise ValueError(f"{path.name}: unknown entries {sorted(unknown)}.")
    return list(_runs(plan))


def _runs(plan: dict[str, Any]) -> Iterator[Run]:
    tasks = [
        (Task(**{k: v for k, v in task.items() if k != "settings"}), task.get("settings", {})) for task in plan["tasks"]
    ]
    regimes = [
        (regime, changes)
        for regime, several in plan["regimes"].items()
        for changes in (several if isinstance(several, list) else [several])
    ]
    for seed, (regime, changes), (task, own) in itertools.product(plan["seeds"], regimes, tasks):
        if not readable(regime, task):
            continue
        settings = REGIMES[regime].Settings(**{**(changes or {}), **own})
        for entry in plan["methods"]:
            if regime not in METHODS[entry["method"]].regimes:
                continue
            for configuration in grid(entry):
                yield Run(task, regime, settings, entry["method"], configuration, seed, plan.get("exploratory", True))


def readable(regime: str, task: Task) -> bool:
    images = {name for names in IMAGES.values() for name in names}
    return task.name in IMAGES[regime] if regime in IMAGES else task.name not in images


def grid(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every point of a method's grid, with its fixed options."""
    names, values = entry.get("grid", {}).keys(), entry.get("grid", {}).values()
    return [{**entry.get("with", {}), **dict(zip(names, point, strict=True))} for point in itertools.product(*values)]
