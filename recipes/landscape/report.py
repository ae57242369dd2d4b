"""Tables and pictures for docs/experiments.md, from the JSON files in results/.

python recipes/landscape/report.py            # writes docs/generated/landscape/*.md and docs/img/widening.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
NAMES = {
    "mlp": "MLP 16-8-4, regression on a teacher of 32 neurons",
    "tiny_transformer": "BERT of 2 blocks, 32 MLP neurons each, from scratch, 30 intents",
    "minilm": "MiniLM-L6, 1,536 MLP neurons in each of 6 blocks, fine-tuned, 30 intents",
}
REFERENCE = "no widening"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fixed_table(fixed: dict[str, Any]) -> str:
    first = ", ".join(f"{name} = {fixed[key]:.6f}" for name, key in (("u", "u"), ("v", "v"), ("L", "loss"), ("B", "B")))
    rows = []
    for ratio, ends in fixed["descent_ends"].items():
        stays = sum(abs(end - fixed["loss"]) < 1e-5 for end in ends)
        low = sum(end < 0.05 for end in ends)
        verdict = fixed["verdicts"][ratio]
        rows.append([ratio, verdict, stays, low, len(ends) - stays - low, f"{min(ends):.6f}", f"{max(ends):.6f}"])
    lowest = fixed["path"][-1]["loss"]
    header = ["λ", "verdict", "returned to L", "below 0.05", "elsewhere", "lowest loss", "highest loss"]
    return (
        f"{first}. Gradient descent, {len(ends)} starts at distance of about 0.01 from each split, "
        f"{fixed['descent_steps']:,} steps:\n\n{table(header, rows)}\n"
        f"The escape path from λ = 0.25 has {len(fixed['path'])} points and ends at a loss of {lowest:.1e}.\n\n"
        f"Split into {fixed['infimum']['ranks'][1]} neurons, as many as items, the rank of the features is "
        f"{fixed['infimum']['ranks'][0]}; the path to the infimum goes from {fixed['infimum']['start']:.6f} to "
        f"{fixed['infimum']['end']:.1e}.\n"
    )


def teachers_table(rows: list[dict[str, Any]]) -> str:
    header = [
        "inputs", "biases", "teachers", "critical points found", "neurons", "B definite", "of these certified",
        "B indefinite", "an eigenvalue is 0",
    ]  # fmt: skip
    body = []
    for row in rows:
        kinds = {name: row["kinds"].get(name, 0) for name in ("certified", "definite", "indefinite", "zero")}
        definite = kinds["certified"] + kinds["definite"]
        bias = "yes" if row["bias"] else "no"
        counts = [row["teachers"], row["critical"], row["neurons"], definite, kinds["certified"]]
        body.append([row["inputs"], bias, *counts, kinds["indefinite"], kinds["zero"]])
    return table(header, body)


def widening_table(files: list[dict[str, Any]]) -> str:
    parts = []
    for file in files:
        for setting, numbers in file["settings"].items():
            records = [record for record in file["records"] if record["setting"] == setting]
            reference = {r["seed"]: r["loss"] for r in records if r["arm"] == REFERENCE}
            rows = []
            for arm in dict.fromkeys(record["arm"] for record in records):
                own = [record for record in records if record["arm"] == arm]
                losses = [record["loss"] for record in own]
                change = [(record["loss"] / reference[record["seed"]] - 1) * 100 for record in own]
                lower = sum(record["loss"] < reference[record["seed"]] for record in own)
                jump = max(abs(record["loss_widened"] - record["loss_before"]) for record in own)
                rows.append([
                    arm, f"{own[0]['parameters']:,}", f"{jump:.0e}" if jump else "0", f"{statistics.mean(losses):.4f}",
                    "" if arm == REFERENCE else f"{statistics.mean(change):+.1f} ± {statistics.stdev(change):.1f} %",
                    "" if arm == REFERENCE else f"{lower} of {len(own)}",
                ])  # fmt: skip
            start = statistics.mean(record["loss_before"] for record in records)
            header = ["arm", "parameters", "change at once, at most", "training loss", "against no widening", "lower"]
            parts.append(
                f"**{NAMES[setting]}**: {numbers['before']} steps, then {numbers['after']} more; AdamW "
                f"{numbers['learning_rate']:g}, batches of {numbers['batch_size']}, {len(reference)} seeds. Training "
                f"loss at the moment of widening: {start:.4f} on average.\n\n{table(header, rows)}"
            )
    return "\n".join(parts)


def widening_figure(files: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = [(file, setting) for file in files for setting in file["settings"]]
    figure = Figure(figsize=(4.2 * len(settings), 3.7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (file, setting) in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        records = [record for record in file["records"] if record["setting"] == setting]
        for arm, style in zip(dict.fromkeys(r["arm"] for r in records), ("-", "--", "-.", ":"), strict=False):
            own = [record for record in records if record["arm"] == arm]
            curves = [[(0, record["loss_widened"]), *map(tuple, record["curve"])] for record in own]
            steps = [step for step, _ in curves[0]]
            means = [statistics.mean(curve[k][1] for curve in curves) for k in range(len(steps))]
            axes.plot(steps, means, style, label=arm)
        axes.set(title=setting.replace("_", " "), xlabel="steps after widening", ylabel="training loss")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    minima = json.loads((options.results / "minima.json").read_text())
    widening = [json.loads(file.read_text()) for file in sorted(options.results.glob("widening*.json"))]
    folder = options.docs / "generated" / "landscape"
    folder.mkdir(parents=True, exist_ok=True)
    (options.docs / "img").mkdir(exist_ok=True)
    (folder / "fixed.md").write_text(fixed_table(minima["fixed"]))
    (folder / "teachers.md").write_text(teachers_table(minima["teachers"]))
    (folder / "widening.md").write_text(widening_table(widening))
    widening_figure(widening, options.docs / "img" / "widening.png")


if __name__ == "__main__":
    main()
