"""How the generalization gap goes with each measure: Pearson and Kendall correlations with bootstrap intervals.

    python recipes/flatness_study/analysis.py recipes/flatness_study/results/runs.jsonl \\
        --output docs/generated/flatness_study --figure docs/img/flatness-study.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hf_fam.measure.plotting import new_figure, save

LAYER_MEASURES = {
    "kappa": "κ, features normalized",
    "kappa_max": "κ_max, features normalized",
    "layerwise": "layer-wise, features normalized",
    "kappa_plain": "κ",
    "layerwise_plain": "layer-wise",
    "trace": "Tr H",
    "lambda_max": "λ_max",
    "weight_norm": "‖W‖",
}
NETWORK_MEASURES = {"fisher_rao": "Fisher-Rao norm", "pac_bayes": "PAC-Bayes flatness, 1/σ²"}
LAYERS = ("fc2", "fc3")
SETTING = ("optimizer", "learning_rate", "batch_size", "weight_decay")

_ACCURACY = (
    "Training accuracy minus test accuracy. Not part of the plan: added when the correlations above had been seen."
)

Gap = Callable[[dict[str, Any]], float]
# Of some values in every resample; the first argument says how often each network is in it, (resamples, networks).
Correlation = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("out/flatness_study"), help="folder")
    parser.add_argument("--figure", type=Path, help="default: gap.png in that folder")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args(arguments)
    runs = [json.loads(line) for line in options.runs.read_text(encoding="utf-8").splitlines()]
    used = [run for run in runs if run["converged"]]
    if len(used) < 3:
        raise SystemExit(
            f"{options.runs}: {len(used)} of {len(runs)} networks reached the loss; at least 3 are needed."
        )
    options.output.mkdir(parents=True, exist_ok=True)
    parts = [_heading(runs, used)]
    for title, when in (("As trained", "before"), ("After random rescaling of every neuron", "after")):
        parts.append(f"## {title}\n\n{table(used, when, options.resamples)}")
    parts.append(f"## Within one optimizer, as trained\n\n{by_optimizer(used)}")
    in_accuracy = table(used, "before", options.resamples, accuracy_gap)
    parts.append(f"## The gap in accuracy instead, as trained\n\n{_ACCURACY}\n\n{in_accuracy}")
    (options.output / "correlations.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw(used, options.figure or options.output / "gap.png")
    print("\n\n".join(parts))


def loss_gap(run: dict[str, Any]) -> float:
    """Test loss minus training loss."""
    return run["gap"]


def accuracy_gap(run: dict[str, Any]) -> float:
    """Training accuracy minus test accuracy: unlike the loss, it does not count how confident mistakes are."""
    return run["train_accuracy"] - run["test_accuracy"]


def measures(runs: list[dict[str, Any]], when: str) -> dict[str, np.ndarray]:
    """Return the values of every measure, by its title."""
    found = {}
    for layer in LAYERS:
        for name, title in LAYER_MEASURES.items():
            found[f"{layer}: {title}"] = np.array([run[when][layer][name] for run in runs], dtype=float)
    for name, title in NETWORK_MEASURES.items():
        found[title] = np.array([run[when][name] for run in runs], dtype=float)
    return found


def table(runs: list[dict[str, Any]], when: str, resamples: int, gap_of: Gap = loss_gap) -> str:
    """Return the correlations with the gap, with 95 % percentile intervals over settings."""
    columns = ("measure", "Kendall", "Pearson", "Pearson of the logarithm")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    gap, resampled = np.array([gap_of(run) for run in runs]), resample(runs, resamples)
    for title, x in measures(runs, when).items():
        cells = [interval(kendall, resampled, x, gap), interval(pearson, resampled, x, gap)]
        cells.append(interval(pearson, resampled, np.log10(x), gap) if (x > 0).all() else "not all positive")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def resample(runs: list[dict[str, Any]], resamples: int) -> np.ndarray:
    """Return how often each network is in a resample, shape (resamples, networks).

    Settings are drawn, with the networks of all their seeds, for those are not independent.
    """
    settings = [tuple(run[name] for name in SETTING) for run in runs]
    number = np.array([sorted(set(settings)).index(setting) for setting in settings])
    count = number.max() + 1
    drawn = np.random.default_rng(0).integers(0, count, (resamples, count))
    return (drawn[:, :, None] == np.arange(count)).sum(1)[:, number]


def interval(correlation: Correlation, how_often: np.ndarray, x: np.ndarray, y: np.ndarray) -> str:
    """Return a correlation with its bootstrap interval."""
    low, high = np.nanpercentile(correlation(how_often, x, y), [2.5, 97.5])
    return f"{correlation(once(x), x, y).item():+.2f} [{low:+.2f}, {high:+.2f}]"


def once(values: np.ndarray) -> np.ndarray:
    """Every network once: the sample itself as a resample."""
    return np.ones((1, len(values)), dtype=int)


def kendall(how_often: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b in every resample; NaN for a constant.

    Args:
        how_often: how often each of n networks is in a resample, (resamples, n).
        x: values, (n,).
        y: values, (n,).
    """
    signs = [np.sign(values[:, None] - values) for values in (x, y)]

    def pairs(matrix: np.ndarray) -> np.ndarray:
        return ((how_often @ matrix) * how_often).sum(1)

    untied = pairs(signs[0] ** 2) * pairs(signs[1] ** 2)
    return pairs(signs[0] * signs[1]) / np.sqrt(np.where(untied > 0, untied, np.nan))


def pearson(how_often: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r in every resample, as for Kendall's tau; NaN for a constant."""
    share = how_often / how_often.sum(1, keepdims=True)
    dx, dy = (values - share @ values[:, None] for values in (x, y))
    covariance, *variances = ((share * product).sum(1) for product in (dx * dy, dx * dx, dy * dy))
    for values, variance in zip((x, y), variances, strict=True):
        variance[variance <= 1e-24 * (values**2).max()] = np.nan
    return covariance / np.sqrt(variances[0] * variances[1])


def by_optimizer(runs: list[dict[str, Any]]) -> str:
    """Return Kendall's tau within each optimizer: a correlation over all may be one between optimizers."""
    parts = {name: [r for r in runs if r["optimizer"] == name] for name in sorted({r["optimizer"] for r in runs})}
    lines = [f"| measure (Kendall) | {' | '.join(parts)} |", f"| --- |{' --- |' * len(parts)}"]
    values = {name: (measures(part, "before"), np.array([r["gap"] for r in part])) for name, part in parts.items()}
    for title in measures(runs, "before"):
        cells = [f"{kendall(once(gap), of[title], gap).item():+.2f} ({len(gap)})" for of, gap in values.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw the gap against every measure, before and after rescaling."""
    values = {when: measures(runs, when) for when in ("before", "after")}
    titles = list(values["before"])
    rows = math.ceil(len(titles) / 3)
    figure = new_figure(15, 3 * rows)
    for axes, title in zip(figure.subplots(rows, 3).flat, titles, strict=False):
        for when, marker in (("before", "o"), ("after", "x")):
            axes.plot(values[when][title], [r["gap"] for r in runs], marker, markersize=4, label=when)
        axes.set(xlabel=title, ylabel="test loss - training loss")
        _scale(axes, [x for when in values for x in values[when][title]])
        axes.grid(alpha=0.3)
    axes.figure.axes[0].legend(title="rescaling")
    for unused in figure.axes[len(titles) :]:
        unused.remove()
    save(figure, path)


def _scale(axes: Axes, values: list[float]) -> None:
    """Logarithmic where values are positive and differ much, with as many labels as there is space for."""
    spread = max(values) / min(values) if min(values) > 0 else 0.0
    if spread < 3:
        return
    axes.set_xscale("log")
    if spread < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())


def _heading(runs: list[dict[str, Any]], used: list[dict[str, Any]]) -> str:
    gaps, losses = [r["gap"] for r in used], [r["train_loss"] for r in used]
    return (
        f"{len(used)} of {len(runs)} networks reached the training loss of {used[0]['target']:g} and are compared: "
        f"training loss {min(losses):.4f} to {max(losses):.4f}, gap {min(gaps):.3f} to {max(gaps):.3f}. Correlations "
        "with the gap, with 95 % bootstrap intervals over settings."
    )


if __name__ == "__main__":
    main()
