"""Write the tables of the study: what the rules choose, and what the confirmation shows.

    python recipes/classifier_study/report.py

Reads results/, writes docs/generated/classifier_study. README.md has the rules.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import promise
from scipy import stats

RESULTS = Path(__file__).parent / "results"
OUTPUT = Path(__file__).parents[2] / "docs" / "generated" / "classifier_study"
SCORES = ("accuracy", "nll")
# Deltas at which a measure of the dimension may be used, before its ratio to (tr S)² / tr(S²).
FACTORS = 10 ** np.arange(-1.5, 1.51, 0.125)


def differences(results: pandas.DataFrame) -> pandas.DataFrame:
    """Scores minus those of tuned logistic regression, for the same task and seed."""
    baseline = results[results.method == "tuned C"].set_index(["task", "seed"])[list(SCORES)]
    compared = results[results.method.isin(["flat", "whitened", "C = 1"])].copy()
    compared[list(SCORES)] -= baseline.loc[list(zip(compared.task, compared.seed, strict=True))].to_numpy()
    return compared


def settings(compared: pandas.DataFrame) -> pandas.DataFrame:
    """Mean over tasks and seeds of each pair of delta and smoothing."""
    flat = compared[compared.method == "flat"]
    return flat.groupby(["delta", "smoothing"])[list(SCORES)].mean().reset_index()


def chosen(candidates: pandas.DataFrame) -> pandas.Series:
    """Rule 1 of README.md. If no candidate is allowed, as may be for smoothing 1, the best accuracy is chosen."""
    allowed = candidates[candidates.nll <= 0]
    if allowed.empty:
        return candidates.loc[candidates.accuracy.idxmax()]
    level = allowed[allowed.accuracy >= allowed.accuracy.max() - 0.1]
    return level.loc[level.nll.idxmin()]


def chosen_pairs(results: pandas.DataFrame) -> list[tuple[float, float]]:
    """Delta and smoothing that the rule chooses below smoothing 1, and at smoothing 1."""
    means = settings(differences(results))
    rows = (chosen(means[means.smoothing < 1]), chosen(means[means.smoothing == 1]))
    return [(float(row.delta), float(row.smoothing)) for row in rows]


def grid_table(means: pandas.DataFrame) -> str:
    smoothings = sorted(means.smoothing.unique())
    lines = [
        "| δ | " + " | ".join(f"ε = {value:g}" for value in smoothings) + " |",
        "| ---: |" + " ---: |" * len(smoothings),
    ]
    for delta, group in means.groupby("delta"):
        cells = [f"{row.accuracy:+.2f}, {row.nll:+.3f}" for row in group.sort_values("smoothing").itertuples()]
        lines.append(f"| {delta:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measures_table(results: pandas.DataFrame, compared: pandas.DataFrame) -> str:
    """Rule 2: every measure of the dimension with its own best delta, by interpolation between the fits."""
    grid = compared[(compared.method == "flat") & (compared.smoothing == 0.1)].sort_values("delta")
    curves = dict(iter(grid.groupby(["task", "seed"])))
    names = [name for name in results.method.unique() if name.startswith("dimension: ")]
    values = {name: results[results.method == name].set_index(["task", "seed"]).accuracy for name in names}
    lines = ["| d | best δ | accuracy | NLL | worst task, accuracy |", "| --- | ---: | ---: | ---: | ---: |"]
    for name in names:
        rows = []
        for factor in FACTORS:
            for case, curve in curves.items():
                delta = factor * (values["dimension: participation"][case] / values[name][case]) ** 0.5
                at = np.log(delta), np.log(curve.delta)
                rows.append((factor, case[0], *(np.interp(*at, curve[score]) for score in SCORES)))
        table = pandas.DataFrame(rows, columns=["delta", "task", *SCORES])
        lines.append(measure_row(name.removeprefix("dimension: "), table))
    lines.append(measure_row("whitened features, their rank", compared[compared.method == "whitened"]))
    return "\n".join(lines) + "\n"


def measure_row(name: str, table: pandas.DataFrame) -> str:
    means = table.groupby("delta")[list(SCORES)].mean().reset_index()
    best = chosen(means)
    worst = table[table.delta == best.delta].groupby("task").accuracy.mean().min()
    return f"| {name} | {best.delta:.2g} | {best.accuracy:+.2f} | {best.nll:+.3f} | {worst:+.1f} |"


def task_table(results: pandas.DataFrame, delta: float, smoothing: float) -> str:
    """Absolute scores of each task, and the paired difference with its interval."""
    flat = results[(results.method == "flat") & (results.delta == delta) & (results.smoothing == smoothing)]
    tuned, plain = (results[results.method == method] for method in ("tuned C", "C = 1"))
    lines = [
        "| task | flat, no tuning | C tuned | difference | flat, NLL | C tuned | difference | C = 1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    pivots = {}
    for score in SCORES:
        pivots[score] = [part.pivot(index="seed", columns="task", values=score) for part in (flat, tuned, plain)]
    for task in dict.fromkeys(results.task):
        cells = []
        for score, digits in (("accuracy", 1), ("nll", 3)):
            ours, theirs, _ = (table[task] for table in pivots[score])
            cells += [f"{ours.mean():.{digits}f}", f"{theirs.mean():.{digits}f}", interval(ours - theirs, digits)]
        untuned = (f"{pivots[score][2][task].mean():.{digits}f}" for score, digits in (("accuracy", 1), ("nll", 3)))
        lines.append(f"| {task} | " + " | ".join([*cells, ", ".join(untuned)]) + " |")
    means = [
        interval((pivots[score][0] - pivots[score][1]).mean(axis=1), digits + 1)
        for score, digits in (("accuracy", 1), ("nll", 3))
    ]
    lines.append(f"| **mean of the tasks** | | | {means[0]} | | | {means[1]} | |")
    return "\n".join(lines) + "\n"


def interval(values: pandas.Series, digits: int) -> str:
    """Mean and 95 % t interval over seeds."""
    margin = stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    mean = values.mean()
    return f"{mean:+.{digits}f} ({mean - margin:+.{digits}f} to {mean + margin:+.{digits}f})"


def choice(results: pandas.DataFrame) -> str:
    compared = differences(results)
    means = settings(compared)
    best, uniform = (
        means[(means.delta == pair[0]) & (means.smoothing == pair[1])].iloc[0] for pair in chosen_pairs(results)
    )
    plateau = means[(means.accuracy >= best.accuracy - 0.3) & (means.nll <= best.nll + 0.02) & (means.smoothing < 1)]
    pairs = ", ".join(f"({row.delta:g}, {row.smoothing:g})" for row in plateau.itertuples())
    tasks, seeds = results.task.nunique(), results.seed.nunique()
    untuned = compared[compared.method == "C = 1"][list(SCORES)].mean()
    parts = [
        f"Differences to logistic regression with tuned C, in accuracy (points) and NLL: means over {tasks} tasks and "
        f"{seeds} seeds.\n",
        grid_table(means),
        f"The rule chooses δ = {best.delta:g}, ε = {best.smoothing:g}. The plateau (δ, ε): {pairs}.\n",
        f"ε = 1 is an L2 penalty of automatic strength. Its best δ is {uniform.delta:g}: {uniform.accuracy:+.2f}, "
        f"{uniform.nll:+.3f}.\n",
        f"Logistic regression with C = 1: {untuned.accuracy:+.2f}, {untuned.nll:+.3f}.\n",
        "Measures of the effective dimension at ε = 0.1, each with its best δ:\n",
        measures_table(results, compared),
        "Every task with the chosen setting:\n",
        task_table(results, best.delta, best.smoothing),
    ]
    return "\n".join(parts)


def confirmation(results: pandas.DataFrame) -> str:
    ours = results[results.method.isin(["flat", "stable rank"])]
    default, *others = ours[["method", "delta", "smoothing"]].drop_duplicates().itertuples(index=False)
    parts = [
        f"δ = {default.delta:g}, ε = {default.smoothing:g}; {results.seed.nunique()} seeds, 95 % intervals.\n",
        task_table(results, default.delta, default.smoothing),
        "Other settings, mean of the tasks minus tuned logistic regression. "
        "ε = 1 is an L2 penalty of automatic strength:\n",
        others_table(results, others),
    ]
    return "\n".join(parts)


def others_table(results: pandas.DataFrame, others: Any) -> str:
    compared = results[results.method == "tuned C"].set_index(["seed", "task"])[list(SCORES)]
    lines = ["| setting | accuracy | NLL |", "| --- | ---: | ---: |"]
    for method, delta, smoothing in [*others, ("C = 1", None, None)]:
        rows = results[results.method == method]
        if delta is not None:
            rows = rows[(rows.delta == delta) & (rows.smoothing == smoothing)]
        by_seed = (rows.set_index(["seed", "task"])[list(SCORES)] - compared).groupby("seed").mean()
        name = method if delta is None else f"δ = {delta:g}, ε = {smoothing:g}"
        name += ", d = tr S / λ_max" if method == "stable rank" else ""
        lines.append(f"| {name} | {interval(by_seed.accuracy, 2)} | {interval(by_seed.nll, 4)} |")
    return "\n".join(lines) + "\n"


def extent(results: pandas.DataFrame) -> str:
    seeds = results.groupby("task").seed.nunique()
    return f"At least {seeds.min()} seeds.\n\n" + promise.task_table(results, ["tuned C", "shrinkage LDA", "C = 1"])


def starts(results: pandas.DataFrame) -> str:
    same = (results.from_zero - results.from_plain).abs() <= 1e-6
    lines = ["| δ | cases | one loss, to 1e-6 |", "| ---: | ---: | ---: |"]
    for delta, group in [*same.groupby(results.delta), ("all", same)]:
        lines.append(f"| {delta} | {len(group)} | {group.sum()} |")
    lines.append("\nWhere they differ, the loss from zero and from plain training:\n")
    lines += [
        f"- {row.task}, δ = {row.delta:g}: {row.from_zero:.6f}, {row.from_plain:.6f}"
        for row in results[~same].itertuples()
    ] or ["- nowhere"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    in_time = [pandas.read_csv(path) for path in options.results.glob("rivals_in_time.csv")]
    for name, write in {
        "choice": choice,
        "confirmation": confirmation,
        "promise": promise.tables,
        "rivals": lambda results: promise.rivals(pandas.concat([results, *in_time])),
        "cross_validated": promise.cross_validated,
        "extent": extent,
        "starts": starts,
    }.items():
        path = options.results / f"{name}.csv"
        if path.exists():
            (options.output / f"{name}.md").write_text(write(pandas.read_csv(path)), encoding="utf-8")
            print(options.output / f"{name}.md")
    if (options.results / "extent.csv").exists():
        promise.draw_figures(pandas.read_csv(options.results / "extent.csv"), options.output)


if __name__ == "__main__":
    main()
