"""Tables for docs/experiments.md, from the JSON files that choose.py wrote.

    python recipes/gan_interpolation/choice_report.py

With several seeds, a difference is the mean over the seeds, and its interval is that of the pairs of these networks.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from report import DOCS, FOLDER, RESULTS, table

Run = dict[str, Any]


def combined(runs: list[Run], method: str, kind: str, score: str) -> tuple[float, float, float]:
    """Mean over the runs, with the interval of independent means.

    Examples:
        >>> run = {"methods": {"a": {"mean": {"x": [1.0, 0.0, 2.0]}}}}
        >>> combined([run] * 4, "a", "mean", "x")
        (1.0, 0.5, 1.5)
    """
    each = [run["methods"][method][kind][score] for run in runs]
    mean = sum(value for value, _, _ in each) / len(each)
    half = math.sqrt(sum(((high - low) / 2) ** 2 for _, low, high in each)) / len(each)
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    runs = [json.loads(file.read_text()) for file in sorted(options.results.glob("choice-seed-*.json"))]
    if not runs:
        raise SystemExit(f"--results {options.results}: there is no choice-seed-*.json; run choose.py first.")
    folder = options.docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "choice_known.md").write_text(known_table(runs))
    (folder / "choice_settings.md").write_text(chosen_table(runs))
    (folder / "choice_mean.md").write_text(differences_table(runs, "mean"))
    (folder / "choice_worst.md").write_text(differences_table(runs, "worst"))


if __name__ == "__main__":
    main()
