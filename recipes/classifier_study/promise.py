"""The verdict on the promise of README.md, its tables, and the figures of the synthetic data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas
from scipy import stats

# A rival of the promise, and whether it has probabilities.
RIVALS = {"tuned C": True, "shrinkage LDA": True, "ridge": False}
NAMES = {
    "tuned C": "logistic regression, C tuned",
    "shrinkage LDA": "shrinkage LDA, tuned",
    "ridge": "ridge, tuned",
    "C = 1": "logistic regression, C = 1",
    "fixed": "δ = 0.7, ε = 0.03 for all tasks",
}
LEVEL = 0.01
LOSS = -0.5


def by_seed(results: pandas.DataFrame, method: str, score: str) -> pandas.DataFrame:
    """Return scores with a row for each seed and a column for each task, of seeds that have all tasks."""
    table = results[results.method == method].pivot(index="seed", columns="task", values=score)
    return table.dropna()


def gain(results: pandas.DataFrame, rival: str, score: str) -> pandas.Series:
    """Return the mean over tasks of our score minus a rival's, for each seed."""
    ours, theirs = by_seed(results, "auto", score), by_seed(results, rival, score)
    return (ours - theirs).dropna().mean(axis=1)


def interval(values: pandas.Series, digits: int) -> str:
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    mean = values.mean()
    return f"{mean:+.{digits}f} ({mean - margin:+.{digits}f} to {mean + margin:+.{digits}f})"


def kept(gains: pandas.Series, sign: int) -> bool:
    """Return whether the mean has the sign with p < 0.01 in a two-sided t test."""
    return bool(sign * gains.mean() > 0 and stats.ttest_1samp(gains, 0).pvalue < LEVEL)


def tables(results: pandas.DataFrame) -> str:
    """Return the verdict against each rival, and the scores of each task."""
    complete = by_seed(results, "auto", "accuracy")
    results = results[results.seed.isin(complete.index)]
    lines = [
        f"{results.task.nunique()} tasks, {len(complete)} seeds, paired differences with 95 % intervals over seeds.\n",
        "| FlatLogisticRegression, no tuning, minus | accuracy, points | promise | NLL | promise |",
        "| --- | ---: | --- | ---: | --- |",
    ]
    for method, name in NAMES.items():
        accuracy = gain(results, method, "accuracy")
        is_rival = method in RIVALS
        cells = [name, interval(accuracy, 2), _answer(kept(accuracy, 1)) if is_rival else ""]
        if RIVALS.get(method, True):
            nll = gain(results, method, "nll")
            cells += [interval(nll, 3), _answer(kept(nll, -1)) if is_rival else ""]
        else:
            cells += ["no probabilities", ""]
        lines.append("| " + " | ".join(cells) + " |")
    worst = (complete - by_seed(results, "C = 1", "accuracy")).mean()
    lines.append(
        f"\nWorst task against C = 1: {worst.min():+.1f} points ({worst.idxmin()}). At most half a point behind: "
        f"{_answer(worst.min() >= LOSS)}.\n"
    )
    return "\n".join(lines) + "\n" + task_table(results, ["tuned C", "shrinkage LDA", "ridge", "C = 1"])


def _answer(is_kept: bool) -> str:
    return "kept" if is_kept else "not kept"


def task_table(results: pandas.DataFrame, methods: Sequence[str]) -> str:
    """Return mean accuracy and NLL of each task."""
    means = results.groupby(["task", "method"])[["accuracy", "nll"]].mean()
    lines = [
        "| task | no tuning | " + " | ".join(_short(method) for method in methods) + " |",
        "| --- |" + " ---: |" * (len(methods) + 1),
    ]
    for task in dict.fromkeys(results.task):
        rows = [means.loc[(task, method)] for method in ("auto", *methods)]
        cells = [
            f"{row.accuracy:.1f}, {row.nll:.2f}" if np.isfinite(row.nll) else f"{row.accuracy:.1f}" for row in rows
        ]
        lines.append(f"| {task.removesuffix(', standardized')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\nAccuracy in percent, NLL.\n"


def _short(method: str) -> str:
    return NAMES.get(method, method).replace("logistic regression, ", "").replace(", tuned", "")


def rivals(results: pandas.DataFrame) -> str:
    """Return the differences to rivals that were not part of the promise."""
    seeds = by_seed(results, "auto", "accuracy").index
    results = results[results.seed.isin(seeds)]
    lines = [
        f"{results.task.nunique()} tasks, {len(seeds)} seeds. Every rival has eight tries on validation samples.\n",
        "| FlatLogisticRegression, no tuning, minus | accuracy, points | NLL |",
        "| --- | ---: | ---: |",
    ]
    others = [method for method in dict.fromkeys(results.method) if method != "auto"]
    lines += [
        f"| {method} | {interval(gain(results, method, 'accuracy'), 2)} | {interval(gain(results, method, 'nll'), 3)} |"
        for method in others
    ]
    return "\n".join(lines) + "\n\n" + task_table(results, others)


def cross_validated(results: pandas.DataFrame) -> str:
    """Return the differences to logistic regression whose C is chosen by cross-validation."""
    accuracy, nll = (gain(results, "C by cross-validation", score) for score in ("accuracy", "nll"))
    return (
        f"Against logistic regression with C by five-fold cross-validation, also on training samples only: "
        f"{interval(accuracy, 2)} points, NLL {interval(nll, 3)}. {results.task.nunique()} tasks, "
        f"{len(accuracy)} seeds, 95 % intervals.\n"
    )


def draw_figures(results: pandas.DataFrame, output: Path) -> None:
    """Write how the accuracies change with label noise, and with the number of samples."""
    noise = {f"10 classes, 50 a class, 512 features, {share}% wrong, raw": share for share in (0, 20, 40, 60)}
    shots = {f"10 classes, {k} a class, 512 features, 20% wrong, raw": k for k in (5, 15, 50, 150)}
    titles = ("Accuracy falls with label noise", "Accuracy grows with the number of samples")
    _draw(results, noise, "wrong labels, percent", titles[0], output / "gain_noise.svg", is_log=False)
    _draw(results, shots, "training samples of each class", titles[1], output / "gain_samples.svg", is_log=True)


def _draw(results: pandas.DataFrame, tasks: dict[str, int], label: str, title: str, path: Path, is_log: bool) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "classifier_study", "font.size": 12})
    figure, axes = plt.subplots(figsize=(7, 4.2))
    lines = {"auto": ("no tuning", "#0072B2"), "tuned C": ("C tuned", "#D55E00"), "C = 1": ("C = 1", "#444444")}
    ends = []
    for method, (name, color) in lines.items():
        cells = [results[(results.task == task) & (results.method == method)].accuracy for task in tasks]
        points = [(x, cell) for x, cell in zip(tasks.values(), cells, strict=True) if len(cell)]
        xs = [x for x, _ in points]
        means = np.array([cell.mean() for _, cell in points])
        margins = [stats.t.ppf(0.975, len(cell) - 1) * cell.std() / len(cell) ** 0.5 for _, cell in points]
        axes.errorbar(xs, means, margins, color=color, marker="o", capsize=3)
        ends.append((means[-1], xs[-1], name, color))
    lowest = -np.inf
    for y, x, name, color in sorted(ends):  # labels keep a distance
        lowest = max(y, lowest + 0.06 * np.ptp(axes.get_ylim()))
        axes.annotate(name, (x, lowest), xytext=(10, -4), textcoords="offset points", color=color)
    if is_log:
        axes.set_xscale("log")
        axes.set_xticks(list(tasks.values()), [str(x) for x in tasks.values()])
        axes.minorticks_off()
    axes.set(xlabel=label, ylabel="test accuracy, percent", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.14)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
