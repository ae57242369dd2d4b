"""Table and figure for docs/experiments.md, from the JSON files that run.py wrote.

    python recipes/gan_interpolation/report.py

Every method is compared with the straight line pair by pair: mean difference, and Wilcoxon's signed-rank test,
two-sided, with Holm's correction over the methods and measures of the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = Path(__file__).parent / "results"
FOLDER = Path("generated") / "gan_interpolation"
BASELINE = "linear"
LENGTHS = {
    "latent_length": "length, latent",
    "image_length": "length, images",
    "feature_length": "length, critic's features",
}
QUALITY = {
    "worst_critic": "worst critic score ↑",
    "mean_critic": "mean critic score ↑",
    "worst_distance": "farthest from real ↓",
    "mean_distance": "mean distance from real ↓",
    "worst_confidence": "lowest confidence ↑",
}

Values = NDArray[np.float64]


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def pooled(runs: list[dict[str, Any]], method: str, measure: str) -> Values:
    return np.concatenate([run["measures"][method][measure] for run in runs])


def mean_and_error(values: Values) -> str:
    return f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def p_values(runs: list[dict[str, Any]], measures: Iterable[str]) -> dict[tuple[str, str], float]:
    """Of each method's differences from the baseline, by Wilcoxon, corrected by Holm."""
    from scipy.stats import wilcoxon

    measures = list(measures)
    raw = {}
    for method in runs[0]["measures"]:
        for measure in measures if method != BASELINE else ():
            difference = pooled(runs, method, measure) - pooled(runs, BASELINE, measure)
            raw[method, measure] = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return holm(raw)


def holm(raw: dict[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Holm's step-down correction.

    Examples:
        >>> holm({("a", "x"): 0.01, ("b", "x"): 0.04, ("c", "x"): 0.03})
        {('a', 'x'): 0.03, ('c', 'x'): 0.06, ('b', 'x'): 0.06}
    """
    corrected: dict[tuple[str, str], float] = {}
    highest = 0.0
    for rank, (key, p) in enumerate(sorted(raw.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(raw) - rank)))
        corrected[key] = highest
    return corrected


def means_table(runs: list[dict[str, Any]]) -> str:
    rows = [
        [method, *(mean_and_error(pooled(runs, method, measure)) for measure in LENGTHS | QUALITY)]
        for method in runs[0]["measures"]
    ]
    return table(["method", *(LENGTHS | QUALITY).values()], rows)


def differences_table(runs: list[dict[str, Any]]) -> str:
    """From the straight line; in brackets in how many of the GANs the mean difference is positive."""
    corrected = p_values(runs, QUALITY)
    rows = []
    for method in runs[0]["measures"]:
        cells = []
        for measure in QUALITY if method != BASELINE else ():
            by_run = [pooled([run], method, measure) - pooled([run], BASELINE, measure) for run in runs]
            positive = sum(part.mean() > 0 for part in by_run)
            p = corrected[method, measure]
            said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            cells.append(f"{mean_and_error(np.concatenate(by_run))}, {said} ({positive} of {len(runs)})")
        if cells:
            rows.append([method, *cells])
    return table(["method − linear", *QUALITY.values()], rows)


def settings_line(runs: list[dict[str, Any]]) -> str:
    settings = runs[0]["settings"]
    pairs = len(runs[0]["measures"][BASELINE]["image_length"])
    each = {
        "critic's estimate": [run["estimate"] for run in runs],
        "largest slope − 1": [run["violation"] for run in runs],
        "judge's accuracy on test images": [run["judge_accuracy"] for run in runs],
        "mean distance of generated images from real": [run["generated"]["mean_distance"] for run in runs],
    }
    named = "; ".join(f"{name} {', '.join(f'{value:.2f}' for value in values)}" for name, values in each.items())
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return (
        f"GANs: {len(runs)} (seeds: {seeds}; {settings['gan_steps']:,} steps of the "
        f"generator), {pairs} random pairs each. {settings['points']} points, degree {settings['degree']}, h = "
        f"{settings['h']:g}, {settings['steps']} steps of Adam at {settings['learning_rate']:g}. By GAN: {named}.\n"
    )


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    """Mean differences from the straight line with twice their standard error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = [method for method in runs[0]["measures"] if method != BASELINE]
    shown = ("worst_critic", "worst_distance", "mean_distance")
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, measure in zip(figure.subplots(1, len(shown), sharey=True), shown, strict=True):
        for k, method in enumerate(methods):
            difference = pooled(runs, method, measure) - pooled(runs, BASELINE, measure)
            error = 2 * difference.std(ddof=1) / len(difference) ** 0.5
            axes.errorbar(difference.mean(), k, xerr=error, fmt="o", color="tab:blue", capsize=3)
        axes.axvline(0, color="gray", linewidth=0.8)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_title(QUALITY[measure], fontsize=9)
        axes.invert_yaxis() if measure == shown[0] else None
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    figure.supxlabel("difference from the straight line, ± 2 standard errors", fontsize=9)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    runs = [json.loads(file.read_text()) for file in sorted(options.results.glob("seed-*.json"))]
    if not runs:
        raise SystemExit(f"--results {options.results}: there is no seed-*.json; run run.py first.")
    folder = options.docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.md").write_text(settings_line(runs))
    (folder / "means.md").write_text(means_table(runs))
    (folder / "differences.md").write_text(differences_table(runs))
    draw(runs, options.docs / "img" / "gan_interpolation.png")


if __name__ == "__main__":
    main()
