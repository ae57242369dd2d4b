"""Tables for docs/experiments.md, from the JSON files that choose.py wrote.

    python recipes/gan_interpolation/choice_report.py

With several seeds, a difference is the mean over the seeds, and its interval is that of the pairs of these networks.
Intervals are those of Bonferroni: with 95 % confidence, all scores of a method are in theirs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

from report import DOCS, FOLDER, RESULTS, table

DECODERS = ("perceptron", "convolutional")
Run = dict[str, Any]


def combined(runs: list[Run], method: str, kind: str, score: str) -> tuple[float, float, float]:
    """Mean over the runs, with an interval that is corrected for the number of scores.

    Examples:
        >>> run = {"methods": {"a": {"mean": {"x": [1.0, 0.0, 2.0]}}}}
        >>> combined([run] * 4, "a", "mean", "x")
        (1.0, 0.5, 1.5)
        >>> run = {"methods": {"a": {"mean": {"x": [1.0, 0.0, 2.0], "y": [0.0, -1.0, 1.0]}}}}
        >>> [round(value, 2) for value in combined([run] * 4, "a", "mean", "x")]
        [1.0, 0.43, 1.57]
    """
    scores, normal = len(runs[0]["methods"][method][kind]), NormalDist()
    wider = normal.inv_cdf(1 - 0.025 / scores) / normal.inv_cdf(0.975)
    each = [run["methods"][method][kind][score] for run in runs]
    mean = sum(value for value, _, _ in each) / len(each)
    half = wider * math.sqrt(sum(((high - low) / 2) ** 2 for _, low, high in each)) / len(each)
    return mean, mean - half, mean + half


def differences_table(runs: list[Run], kind: str) -> str:
    rows = []
    for method, parts in runs[0]["methods"].items():
        found = [combined(runs, method, kind, score) for score in parts[kind]]
        better, worse = sum(low > 0 for _, low, _ in found), sum(high < 0 for _, _, high in found)
        cells = [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high in found]
        rows.append([method, *cells, f"{better} / {worse}"])
    return table(["method", *next(iter(runs[0]["methods"].values()))[kind], "better / worse"], rows)


def known_table(runs: list[Run]) -> str:
    rows = [
        [kind, *(f"{sum(run['known'][kind][score] for run in runs) / len(runs):+.2f}" for score in scores)]
        for kind, scores in runs[0]["known"].items()
    ]
    return table(["images", *next(iter(runs[0]["known"].values()))], rows)


def chosen_table(runs: list[Run]) -> str:
    rows = [
        [name, *(f"{run['chosen'][name]['energy']}, {run['chosen'][name]['h']:g}" for run in runs)]
        for name in runs[0]["chosen"]
    ]
    return table(["scorer", *(f"energy and h, seed {run['seed']}" for run in runs)], rows)


def generators_table(by_decoder: dict[str, list[Run]]) -> str:
    """How good the generators are, means over the runs."""
    measures = next(iter(by_decoder.values()))[0]["generator"]
    rows = [
        [decoder, *(f"{sum(run['generator'][name] for run in runs) / len(runs):.3g}" for name in measures)]
        for decoder, runs in by_decoder.items()
    ]
    return table(["decoder", *measures], rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    folder = options.docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    by_decoder = {}
    for decoder in DECODERS:
        files = sorted(options.results.glob(f"choice-{decoder}-seed-*.json"))
        if not files:
            raise SystemExit(
                f"--results {options.results}: there is no choice-{decoder}-seed-*.json; run choose.py first."
            )
        runs = by_decoder[decoder] = [json.loads(file.read_text()) for file in files]
        (folder / f"choice_{decoder}_known.md").write_text(known_table(runs))
        (folder / f"choice_{decoder}_settings.md").write_text(chosen_table(runs))
        (folder / f"choice_{decoder}_mean.md").write_text(differences_table(runs, "mean"))
        (folder / f"choice_{decoder}_worst.md").write_text(differences_table(runs, "worst"))
    (folder / "choice_generators.md").write_text(generators_table(by_decoder))


if __name__ == "__main__":
    main()
