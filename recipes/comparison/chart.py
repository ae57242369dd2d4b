"""Draw accuracies of plain training, FAM and the strongest rival in each regime, from the stored runs.

    python recipes/comparison/chart.py

Writes ``docs/img/does-it-help.png``, ``docs/generated/does_it_help.md`` and ``docs/generated/comparisons.md``. The
regimes are in ``chart.yaml``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml
from harness.results import RESULT
from scipy import stats

from hf_fam.compare.sentence import display_name

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PLAIN, FAM = "plain", "fam"
# Names of methods of the first protocol that are not those of `hf_fam.methods`.
LABELS = {"gaussian_noise": "Gaussian noise", "feature_noise": "Gaussian noise"}
# Kinds of labels in chart.yaml, as the tables name them.
KINDS = {"wrong": "20 % noise", "right": "clean"}
# Points of accuracy that a panel shows.
SPAN = 16
# Okabe and Ito's colors, which color-blind readers can tell apart.
COLORS = {"plain": "#666666", "fam": "#0072B2", "rival": "#D55E00"}


@dataclass(frozen=True)
class Score:
    """Test accuracies of one method in one regime.

    Attributes:
        method: name of the method.
        accuracies: percent, by seed.
        nll: mean negative log-likelihood.
        strength: of the method.
    """

    method: str
    accuracies: pandas.Series
    nll: float | None = None
    strength: float | None = None

    @property
    def name(self) -> str:
        return LABELS.get(self.method, display_name(self.method))

    @property
    def mean(self) -> float:
        return float(self.accuracies.mean())

    @property
    def half_width(self) -> float:
        """Half of the 95 % t interval of the mean over seeds."""
        return interval(self.accuracies)

    def minus(self, other: Score) -> pandas.Series:
        """Return the differences on the seeds that both have."""
        return (self.accuracies - other.accuracies).dropna()


@dataclass(frozen=True)
class Row:
    """One regime with one kind of labels: its scores, the strongest rival last; no rival where none ran."""

    name: str
    data: str
    scores: list[Score]


def interval(values: pandas.Series) -> float:
    """Return half the width of the 95 % t interval of a mean."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))


def compared(plan: str, name: str) -> list[Score]:
    """Return what `hf_fam.compare` measured of every method in a comparison of a plan, plain training first."""
    result = json.loads((HERE / "results" / plan / name / RESULT).read_text(encoding="utf-8"))
    return [Score(m["method"], pandas.Series(m["scores"]), m["nll"], m["strength"]) for m in result["methods"]]


def read(regime: dict[str, Any], labels: str) -> Row:
    """Return the scores of a regime.

    Args:
        regime: an entry of ``chart.yaml``, of `hf_fam.compare` or of the first protocol.
        labels: one of its kinds of labels.
    """
    has_plan = "plan" in regime
    scores = compared(regime["plan"], regime["comparisons"][labels]) if has_plan else stored(regime, labels)
    plain, fam, *rivals = scores
    strongest = [max(rivals, key=lambda rival: float(rival.minus(plain).mean()))] if rivals else []
    return Row(regime["name"], regime["data"], [plain, fam, *strongest])


def stored(regime: dict[str, Any], labels: str) -> list[Score]:
    """Return the scores of plain training, FAM and the rivals that ran, from the first protocol.

    Args:
        regime: an entry of ``chart.yaml``.
        labels: one of its kinds of labels.
    """
    table = pandas.read_parquet(HERE / "results" / f"{regime['results']}.parquet")
    settings = table.settings.map(json.loads)
    configuration = table.configuration.map(json.loads)
    case = regime[labels]
    first, last = regime["seeds"]
    chosen = (table.task == case["task"]) & table.seed.between(first, last)
    for key, value in regime.get("settings", {}).items():
        chosen &= settings.map(lambda entry, key=key, value=value: entry.get(key) == value)
    accuracy = table.test.map(lambda entry: 100 * entry["accuracy"])

    def score(method: str, wanted: dict[str, Any] | None = None) -> Score | None:
        rate = case.get("rates", {}).get(method, case["rate"])
        mine = chosen & (table.method == method) & settings.map(lambda entry: entry["learning_rate"] == rate)
        if wanted is not None:
            mine &= configuration.map(lambda entry: entry == wanted)
        best: Score | None = None
        for _, rows in table[mine].groupby("configuration"):
            runs = rows.drop_duplicates("seed")
            candidate = Score(method, accuracy[runs.index].set_axis(runs.seed))
            if len(runs) > 2 and (best is None or candidate.mean > best.mean):
                best = candidate
        return best

    plain, fam = score(PLAIN), score(FAM, regime["fam"])
    if plain is None or fam is None:
        raise ValueError(f"{regime['name']}: no runs of plain training or of FAM for {case['task']}.")
    rivals = [rival for rival in map(score, regime["rivals"]) if rival is not None]
    return [plain, fam, *rivals]


def limits(values: pandas.Series) -> str:
    """Return the 95 % interval of a mean."""
    half = interval(values)
    return f"{values.mean() - half:+.1f} to {values.mean() + half:+.1f}"


def markdown(rows: Iterable[tuple[str, Row]]) -> str:
    """Return the table of all regimes.

    Args:
        rows: with the kind of labels.
    """
    lines = [
        "| what is trained | data | labels | plain | FAM | FAM minus plain | strongest rival |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for labels, row in rows:
        plain, fam, *rest = row.scores
        difference = fam.minus(plain)
        gain = f"{difference.mean():+.1f} ({limits(difference)})"
        rival = f"{rest[0].mean:.1f} ({rest[0].name})" if rest else "none ran"
        kind = KINDS.get(labels, labels)
        lines.append(f"| {row.name} | {row.data} | {kind} | {plain.mean:.1f} | {fam.mean:.1f} | {gain} | {rival} |")
    return "\n".join(lines) + "\n"


def method_tables(regimes: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table of all methods for each plan of `hf_fam.compare`, those without tuning last."""
    for plan in dict.fromkeys(regime["plan"] for regime in regimes if "plan" in regime):
        mine = [regime for regime in regimes if regime.get("plan") == plan]
        tasks = [
            (f"{regime['data'].split(',')[0]}, {KINDS.get(kind, kind)}", name)
            for regime in mine
            for kind, name in regime["comparisons"].items()
        ]
        columns = []
        for _, name in tasks:
            scores = {score.name: score for score in compared(plan, name)}
            for untuned in (regime["untuned"] for regime in mine if "untuned" in regime):
                if (HERE / "results" / untuned / name / RESULT).is_file():
                    fixed = [score for score in compared(untuned, name) if score.method != PLAIN]
                    scores |= {f"{score.name} {score.strength:g}, not tuned": score for score in fixed}
            columns.append(scores)
        yield f"| {mine[0]['name']} | " + " | ".join(title for title, _ in tasks) + " |"
        yield "| --- |" + " --- |" * len(tasks)
        seeds = (str(len(scores[display_name(FAM)].accuracies)) for scores in columns)
        yield "| seeds | " + " | ".join(seeds) + " |"
        for method in dict.fromkeys(method for scores in columns for method in scores):
            cells = [cell(scores[method], scores[display_name(FAM)]) if method in scores else "" for scores in columns]
            yield f"| {method} | " + " | ".join(cells) + " |"
        yield ""


def cell(score: Score, fam: Score) -> str:
    """Return accuracy, the interval of FAM minus the method, the NLL, and the number of seeds if it is another one."""
    difference = "" if score is fam else f" ({limits(fam.minus(score))})"
    seeds = "" if len(score.accuracies) == len(fam.accuracies) else f", {len(score.accuracies)} seeds"
    return f"{score.mean:.1f}{difference}, {score.nll:.2f}{seeds}"


def draw(rows: dict[str, list[Row]], path: Path) -> None:
    """Draw a row of two panels for each regime: with label noise, without."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"font.size": 10})
    count = len(rows["right"])
    figure, axes = pyplot.subplots(count, 2, figsize=(6.6, 1.32 * count + 0.9), layout="constrained", squeeze=False)
    titles = ("20 % label noise", "no label noise")
    for column, (title, entries) in enumerate(zip(titles, rows.values(), strict=True)):
        for panel, row in zip(axes[:, column], entries, strict=True):
            draw_row(panel, row)
            if column == 0:
                panel.set_title(row.name, fontsize=10, fontweight="bold", loc="left", pad=4)
            else:
                panel.set_title(row.data, fontsize=8.5, loc="right", color="#555555", pad=4)
        axes[-1, column].set_xlabel(f"{title}\ntest accuracy (%), 95 % interval", fontsize=9.5)
    figure.suptitle("FAM helps most with noisy training labels\n(left: 20 % label noise, right: none)", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def draw_row(panel: Any, row: Row) -> None:
    """Draw one line for each method, with its name and mean; every panel spans equally many points."""
    low = min(score.mean - score.half_width for score in row.scores)
    right = max(score.mean + score.half_width for score in row.scores)
    for kind, marker, height, score in zip(COLORS, "oDs", (2, 1, 0), row.scores, strict=False):
        panel.errorbar(
            score.mean, height, xerr=score.half_width, fmt=marker, color=COLORS[kind], markersize=6, elinewidth=2
        )
        text = f"{score.mean:.1f}  {score.name}"
        panel.text(right + 0.4, height, text, color=COLORS[kind], va="center", fontsize=9)
    panel.set_xlim(low - 0.5, low - 0.5 + SPAN)
    panel.set_ylim(-0.6, 2.6)
    panel.set_yticks([])
    panel.xaxis.set_major_locator(matplotlib_ticks(range(0, 100, 2)))
    panel.tick_params(axis="x", labelsize=8, length=2)
    panel.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def matplotlib_ticks(values: Iterable[int]) -> Any:
    """Return a locator with ticks at the values."""
    from matplotlib.ticker import FixedLocator

    return FixedLocator([*values])


def kinds_of(regime: dict[str, Any]) -> list[str]:
    """Return the kinds of labels of a regime."""
    return list(regime["comparisons"] if "plan" in regime else KINDS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the documentation")
    options = parser.parse_args(arguments)
    regimes = yaml.safe_load((HERE / "chart.yaml").read_text(encoding="utf-8"))
    rows = [(regime, kind, read(regime, kind)) for regime in regimes for kind in kinds_of(regime)]
    folder = options.docs / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    listed = markdown((kind, row) for regime, kind, row in rows if regime.get("in_table", True))
    (folder / "does_it_help.md").write_text(listed, encoding="utf-8")
    (folder / "comparisons.md").write_text("\n".join(method_tables(regimes)), encoding="utf-8")
    drawn = {labels: [row for regime, kind, row in rows if kind == labels and regime["drawn"]] for labels in KINDS}
    draw(drawn, options.docs / "img" / "does-it-help.png")


if __name__ == "__main__":
    main()
