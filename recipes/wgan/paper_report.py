"""The table and the figure of docs/experiments.md, from the runs of paper.py.

python recipes/wgan/paper_report.py      # writes docs/generated/wgan/paper.md and docs/img/wgan-paper.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from recipes.wgan.data import toy
from recipes.wgan.paper import SIDES
from recipes.wgan.report import DOCS, HERE, NAMES, figure_of, rows_of, spread, table
from recipes.wgan.sweep import REACH

Record = dict[str, Any]
MEASURED = (10, 50, 100, 300)
COMMON = 100  # generator steps that all runs have


def number(record: Record, name: str, step: int) -> str:
    """A measurement after some generator steps, as text."""
    return f"{record[name][record['steps'].index(step)]:.3f}" if step in record["steps"] else "–"


def paper_table(records: list[Record], sweep: list[Record]) -> str:
    """Distances over the training, beside those of the sweep with small networks at its end."""
    settings = records[0]["settings"]
    header = ["penalty", "λ", *(f"distance after {step}" for step in MEASURED),
              f"estimate after {COMMON}", f"largest slope − 1 after {COMMON}", "distance in the sweep"]  # fmt: skip
    rows = []
    for record in sorted(records, key=lambda r: (r["side"], r["strength"])):
        small = rows_of(sweep, record["side"], record["strength"])
        rows.append([
            NAMES[record["side"]], f"{record['strength']:g}", *(number(record, "emd", step) for step in MEASURED),
            number(record, "estimate", COMMON), number(record, "violation", COMMON),
            spread([r["emd"] for r in small]) if small else "–",
        ])  # fmt: skip
    setup = (
        f"One seed; batches of {settings['batch_size']}, three hidden layers of {settings['width']}, points around "
        f"real samples, RMSprop at {settings['learning_rate']:g}, {settings['n_critic']} critic steps before a "
        f"generator step, {settings['n_critic_warmup']} before each of the first {settings['n_critic_warmup_steps']}. "
        f"Earth mover's distances between {settings['eval_samples']:,} held-out and as many generated points, after so "
        "many generator steps."
    )
    return f"{setup}\n\n{table(header, rows)}"


def level_figure(records: list[Record], path: Path) -> None:
    """Level sets of the critics, with real and generated points: a row for each penalty, columns for λ and step."""
    columns = sorted({(r["strength"], int(step)) for r in records for step in r["drawn"] if is_shown(r, int(step))})
    figure, grid = figure_of(len(columns), len(SIDES), 2.6 * len(columns), 6)
    settings = records[0]["settings"]
    _, real = toy(settings["data"], settings["train_samples"], settings["eval_samples"], 0)
    for row, side in zip(grid, SIDES, strict=True):
        for axes, (strength, step) in zip(row, columns, strict=True):
            (record,) = (r for r in records if (r["side"], r["strength"]) == (side, strength))
            drawn = record["drawn"][str(step)]
            axes.contourf(drawn["levels"], levels=16, extent=[-REACH, REACH] * 2, cmap="viridis")
            axes.scatter(*real[:256].T.tolist(), s=3, color="white")
            axes.scatter(*zip(*drawn["generated"], strict=True), s=3, color="red")
            axes.set_title(f"{NAMES[side]}, λ = {strength:g},\nafter {step}: {number(record, 'emd', step)}", fontsize=9)
            axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[])
            axes.set_aspect("equal")
    figure.suptitle("Distance of generated (red) from real points (white), on the critic's level sets", fontsize=10)
    figure.savefig(path, dpi=110)


def is_shown(record: Record, step: int) -> bool:
    """The longer runs over their training, the shorter ones at their end."""
    return record["steps"][-1] > COMMON or step == COMMON


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "paper.jsonl")
    parser.add_argument("--sweep", type=Path, default=HERE / "results" / "sweep.jsonl")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    records = [record for record in read(options.results) if record["seed"] == 0]
    folder = options.docs / "generated" / "wgan"
    folder.mkdir(parents=True, exist_ok=True)
    (options.docs / "img").mkdir(exist_ok=True)
    (folder / "paper.md").write_text(paper_table(records, read(options.sweep)))
    level_figure(records, options.docs / "img" / "wgan-paper.png")


if __name__ == "__main__":
    main()
