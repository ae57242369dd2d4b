"""Does the best strength of one layer serve another: as lambda, or as delta = sqrt(2 m lambda)?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .paired import Difference, compare
from .summary import PLAIN, Record, difference, family, group, nll, score

EMBEDDING = 384  # features of the first layer of `frozen_deep`


@dataclass(frozen=True)
class Place:
    """A layer of a network of some width, on one task.

    Attributes:
        task: its key.
        layer: as its module is called.
        width: of the network's hidden layers.
        m: number of the layer's features.
        runs: by strength, then seed.
        plain: runs of plain training, by seed.
    """

    regime = "frozen_deep"

    task: str
    layer: str
    width: int
    m: int
    runs: dict[float, dict[int, Record]]
    plain: dict[int, Record]

    @property
    def best(self) -> float:
        """The strength with the best mean metric on validation; ties: the best likelihood."""

        def merit(strength: float) -> tuple[float, float]:
            scores = [(score(r, "validation"), -nll(r, "validation")) for r in self.runs[strength].values()]
            return tuple(np.mean(scores, axis=0))

        return max(self.runs, key=merit)

    @property
    def gain(self) -> tuple[float, float]:
        """What it changes on test: mean metric and NLL against plain training."""
        pairs = [(r, self.plain[seed]) for seed, r in self.runs[self.best].items() if seed in self.plain]
        metric, likelihood = (difference(pairs, value).mean for value in (score, nll))
        return metric, likelihood

    def nearest(self, strength: float) -> float:
        """The strength that was run and is nearest, in its logarithm."""
        return min(self.runs, key=lambda other: abs(math.log(other / strength)))


@dataclass(frozen=True)
class Carried:
    """The best strength of one place at another.

    Attributes:
        source: where it is the best.
        target: where it is used.
        as_lambda: the same lambda.
        as_delta: the lambda of the same delta, the nearest that was run.
    """

    source: Place
    target: Place
    as_lambda: float
    as_delta: float

    def runs(self, way: str) -> dict[int, Record]:
        """At the target, by seed: ``"lambda"``, ``"delta"``, ``"own"``, its own best strength, or ``"plain"``."""
        if way == "plain":
            return self.target.plain
        return self.target.runs[{"lambda": self.as_lambda, "delta": self.as_delta, "own": self.target.best}[way]]


def places(records: Sequence[Record]) -> list[Place]:
    """Every layer, width and task of the regime `frozen_deep`, in the order of m."""
    here = [r for r in records if r["regime"] == Place.regime and "diverged" not in r]
    plain = group((r for r in here if family(r) == PLAIN), lambda r: (r["task"], r["settings"]["width"]))
    layers = []
    fam = (r for r in here if r["method"] == "fam")
    for (task, width, layer), members in group(
        fam, lambda r: (r["task"], r["settings"]["width"], r["configuration"]["layer"])
    ).items():
        runs: dict[float, dict[int, Record]] = {}
        for record in members:
            runs.setdefault(record["configuration"]["strength"], {})[record["seed"]] = record
        most = max(map(len, runs.values()))  # a strength whose runs are not finished is not compared
        runs = {strength: by_seed for strength, by_seed in runs.items() if len(by_seed) == most}
        m = EMBEDDING if layer == "0" else width
        layers.append(Place(task, layer, width, m, runs, {r["seed"]: r for r in plain.get((task, width), [])}))
    return sorted(layers, key=lambda place: (place.task, place.m, place.layer, place.width))


def carry(layers: Sequence[Place]) -> Iterator[Carried]:
    """From every place to every other of the same task and another m."""
    for source in layers:
        for target in layers:
            if source.task == target.task and source.m != target.m:
                same_delta = source.best * source.m / target.m
                yield Carried(source, target, target.nearest(source.best), target.nearest(same_delta))


def compared(carried: Sequence[Carried], way: str, other: str) -> tuple[Difference, Difference]:
    """Metric and NLL on test, one way minus another (see `Carried.runs`).

    A pair is a task and a seed: the mean over all that was carried there.
    """
    pairs: dict[tuple[str, int], list[tuple[Record, Record]]] = {}
    for c in carried:
        ours, theirs = c.runs(way), c.runs(other)
        for seed in sorted(ours.keys() & theirs.keys()):
            pairs.setdefault((c.target.task, seed), []).append((ours[seed], theirs[seed]))

    def means(value: Callable[[Record], float], side: int) -> list[float]:
        return [float(np.mean([value(pair[side]) for pair in members])) for members in pairs.values()]

    metric, likelihood = (compare(means(value, 0), means(value, 1)) for value in (score, nll))
    return metric, likelihood
