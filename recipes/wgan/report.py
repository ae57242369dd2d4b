"""Tables and pictures for docs/experiments.md, from the runs of sweep.py.

python recipes/wgan/report.py            # writes docs/generated/wgan/*.md, docs/img/wgan-sweep.png and wgan-levels.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

sys.path.append(str(Path(__file__).parents[2]))

from recipes.wgan.data import toy
from recipes.wgan.sweep import CLIPPING, ONE, REACH, STRENGTHS, TWO

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
NAMES = {ONE: "one-sided", TWO: "two-sided", CLIPPING: "clipping"}
Record = dict[str, Any]


def rows_of(records: Iterable[Record], condition: str, strength: float) -> list[Record]:
    found = [r for r in records if (r["condition"], r["strength"]) == (condition, strength)]
    return sorted(found, key=lambda r: r["seed"])


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.2g}"


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sweep_table(records: list[Record]) -> str:
    settings = records[0]["settings"]
    seeds = sorted({r["seed"] for r in records})
    rows = []
    for condition, strengths in STRENGTHS.items():
        for strength in strengths:
            own = rows_of(records, condition, strength)
            columns = ("emd", "wasserstein_estimate", "gradient_violation", "loss_spread", "loss_jumps")
            numbers = [spread([r[name] for r in own]) for name in columns]
            rows.append([NAMES[condition], f"{strength:g}", *numbers])
    header = ["condition", "λ, or limit", "earth mover's distance", "estimate", "largest slope − 1",
              "spread of the critic's loss", "its jumps"]  # fmt: skip
    return (
        f"Mean ± standard deviation over {len(seeds)} seeds; {settings['generator_steps']} generator steps, "
        f"{settings['n_critic']} critic steps before each, batches of {settings['batch_size']}; distances between "
        f"{settings['eval_samples']:,} held-out and as many generated points.\n\n{table(header, rows)}"
    )


def sensitivity(records: list[Record], condition: str, seed: int) -> float:
    """Standard deviation over the strengths of log10 of the earth mover's distance."""
    own = [r["emd"] for r in records if (r["condition"], r["seed"]) == (condition, seed)]
    return statistics.stdev(map(math.log10, own))


def mean_log(name: str) -> Callable[[list[Record], str, int], float]:
    """Mean over the strengths of log10 of a number."""

    def measure(records: list[Record], condition: str, seed: int) -> float:
        own = [r[name] for r in records if (r["condition"], r["seed"]) == (condition, seed)]
        return statistics.mean(map(math.log10, own))

    return measure


MEASURES: dict[str, Callable[[list[Record], str, int], float]] = {
    "sensitivity to λ: sd over the four λ of log₁₀ distance": sensitivity,
    "steadiness: mean over the four λ of log₁₀ spread of the critic's loss": mean_log("loss_spread"),
    "steadiness: the same of its jumps": mean_log("loss_jumps"),
    "quality: mean over the four λ of log₁₀ distance": mean_log("emd"),
}


CLAIMS = {
    "The one-sided penalty depends less on λ": "sensitivity to λ: sd over the four λ of log₁₀ distance",
    "The one-sided penalty makes the critic's loss vary less": (
        "steadiness: mean over the four λ of log₁₀ spread of the critic's loss"
    ),
    "The one-sided penalty makes the critic's loss jump less": "steadiness: the same of its jumps",
    "The one-sided penalty ends closer to the data": "quality: mean over the four λ of log₁₀ distance",
}


def verdicts(records: list[Record], level: float = 0.05) -> str:
    """What shows of each claim, by the paired t test at a level of 5 % and by all seeds."""
    seeds = sorted({r["seed"] for r in records})
    lines = []
    for claim, name in CLAIMS.items():
        one, two = ([MEASURES[name](records, condition, seed) for seed in seeds] for condition in (ONE, TWO))
        differences = np.subtract(one, two)
        p = stats.ttest_rel(one, two).pvalue
        lower = sum(a < b for a, b in zip(one, two, strict=True))
        if p < level:
            said = "this shows" if differences.mean() < 0 else "the opposite shows"
        else:
            said = "this does not show; the difference is within the scatter between seeds"
        lines.append(
            f"- {claim}: **{said}** ({differences.mean():+.3f} ± {differences.std(ddof=1):.3f} on the log scale, lower "
            f"in {lower} of {len(seeds)} seeds, p = {p:.2g})."
        )
    return "\n".join(lines) + "\n"


def claims_table(records: list[Record]) -> str:
    """One-sided against two-sided, seed by seed; less is better everywhere."""
    seeds = sorted({r["seed"] for r in records})
    rows = []
    for name, measure in MEASURES.items():
        one, two = ([measure(records, condition, seed) for seed in seeds] for condition in (ONE, TWO))
        rows.append([name, spread(one), spread(two), *difference(one, two)])
    for strength in STRENGTHS[ONE]:
        pair = ([r["emd"] for r in rows_of(records, condition, strength)] for condition in (ONE, TWO))
        one, two = pair
        rows.append([f"distance at λ = {strength:g}", spread(one), spread(two), *difference(one, two)])
    header = ["", "one-sided", "two-sided", "difference", "one-sided lower", "p, paired t", "p, Wilcoxon"]
    return table(header, rows)


def difference(one: list[float], two: list[float]) -> list[str]:
    differences = np.subtract(one, two)
    lower = sum(a < b for a, b in zip(one, two, strict=True))
    p_values = [stats.ttest_rel(one, two).pvalue, stats.wilcoxon(differences).pvalue]
    spread_of = f"{differences.mean():+.3f} ± {differences.std(ddof=1):.3f}"
    return [spread_of, f"{lower} of {len(one)}", *(f"{p:.2g}" for p in p_values)]


def figure_of(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def sweep_figure(records: list[Record], path: Path) -> None:
    """Distance by strength, and the critic's loss over the training of the first seed."""
    figure, ((distances, *curves),) = figure_of(4, 1, 14, 3.4)
    limits = distances.twiny()
    for condition, style in zip(STRENGTHS, ("o-", "s--", "^:"), strict=True):
        strengths = STRENGTHS[condition]
        values = [[r["emd"] for r in rows_of(records, condition, strength)] for strength in strengths]
        means, deviations = [list(map(f, values)) for f in (statistics.mean, statistics.stdev)]
        axes = limits if condition == CLIPPING else distances
        color = {ONE: "C0", TWO: "C1", CLIPPING: "C2"}[condition]
        axes.errorbar(strengths, means, deviations, fmt=style, capsize=3, label=NAMES[condition], color=color)
    distances.set(xscale="log", yscale="log", xlabel="λ", ylabel="earth mover's distance")
    limits.set(xscale="log")
    limits.set_xlabel("limit of the weights (clipping)", fontsize=8)
    handles = [axes.get_legend_handles_labels() for axes in (distances, limits)]
    distances.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], fontsize=8)
    first = [r for r in records if r["seed"] == 0]
    bound = 2 * max(abs(x) for r in first for x in r["losses"][len(r["losses"]) // 2 :])
    for axes, condition in zip(curves, STRENGTHS, strict=True):
        for strength in STRENGTHS[condition]:
            (record,) = rows_of(first, condition, strength)
            losses = record["losses"]
            steps = [k * record["settings"]["generator_steps"] / len(losses) for k in range(len(losses))]
            axes.plot(steps, losses, linewidth=0.9, label=f"{strength:g}")
        axes.set(title=NAMES[condition], xlabel="generator step", ylim=(-bound, bound))
        axes.set_yscale("symlog", linthresh=0.1)
        axes.legend(title="limit" if condition == CLIPPING else "λ", fontsize=8)
        axes.grid(alpha=0.3)
    curves[0].set_ylabel("critic's loss, seed 0")
    figure.savefig(path, dpi=110)


def level_figure(records: list[Record], path: Path) -> None:
    """Level sets of the critic after the training of the first seed, with held-out and generated points."""
    columns = max(map(len, STRENGTHS.values()))
    figure, grid = figure_of(columns, len(STRENGTHS), 3 * columns, 9)
    settings = records[0]["settings"]
    _, real = toy(settings["data"], settings["train_samples"], settings["eval_samples"], 0)
    for row, (condition, strengths) in zip(grid, STRENGTHS.items(), strict=True):
        for axes, strength in zip(row, strengths, strict=True):
            (record,) = (r for r in rows_of(records, condition, strength) if r["seed"] == 0)
            drawn = axes.contourf(record["critic"], levels=16, extent=[-REACH, REACH] * 2, cmap="viridis")
            figure.colorbar(drawn, ax=axes, shrink=0.8)
            axes.scatter(*real[:300].T.tolist(), s=2, color="white")
            axes.scatter(*zip(*record["generated"], strict=True), s=2, color="red")
            sign = "limit" if condition == CLIPPING else "λ"
            axes.set(title=f"{NAMES[condition]}, {sign} = {strength:g}", xlim=(-REACH, REACH), ylim=(-REACH, REACH))
            axes.set_aspect("equal")
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "sweep.jsonl")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    records = [json.loads(line) for line in options.results.read_text().splitlines()]
    folder = options.docs / "generated" / "wgan"
    folder.mkdir(parents=True, exist_ok=True)
    (options.docs / "img").mkdir(exist_ok=True)
    (folder / "sweep.md").write_text(sweep_table(records))
    (folder / "claims.md").write_text(claims_table(records))
    (folder / "verdicts.md").write_text(verdicts(records))
    sweep_figure(records, options.docs / "img" / "wgan-sweep.png")
    level_figure(records, options.docs / "img" / "wgan-levels.png")


if __name__ == "__main__":
    main()
