"""Curves of what scaling.py measured, one picture an axis, time above, memory below; and its rows as a table.

python recipes/benchmarks/plot_scaling.py FOLDER [IMAGES]      # such as docs/generated/scaling docs/img
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

CURVES = ("batch", "tokens", "width", "vocabulary", "processes")
RATIOS = {"time_ratio": "step time / plain", "torch_ratio": "peak memory / plain"}


def main(folder: Path, images: Path | None = None) -> list[Path]:
    table = pd.read_csv(folder / "scaling.csv")
    written = []
    for axis, rows in table.groupby("axis"):
        figure, plots = plt.subplots(2, 1, figsize=(6, 6), sharex=True, layout="constrained")
        for plot, (ratio, label) in zip(plots, RATIOS.items(), strict=True):
            if axis in CURVES:
                for method, curve in rows.groupby("method"):
                    curve = curve.sort_values(axis)
                    plot.plot(curve[axis], curve[ratio], marker="o", label=method)
                plot.set_xscale("log", base=2)
            else:  # methods, or sizes, side by side
                sizes = rows.width.astype(str) + " x " + rows.vocabulary.astype(str) + ", " + rows.tokens.astype(str)
                names = rows.method if rows[["width", "vocabulary", "tokens"]].drop_duplicates().shape[0] == 1 else (
                    rows.method + "\n" + sizes + " tokens"
                )  # fmt: skip
                plot.bar(range(len(rows)), rows[ratio])
                plot.set_xticks(range(len(rows)), names, rotation=90, fontsize=7)
            plot.axhline(1, color="gray", linewidth=0.8)
            plot.set_ylabel(label)
        plots[1].set_xlabel(axis)
        if axis in CURVES:
            plots[0].legend(fontsize=8)
        written.append((images or folder) / f"scaling-{axis}.png")
        figure.savefig(written[-1], dpi=80)
        plt.close(figure)
    written.append(folder / "scaling.md")
    written[-1].write_text(markdown(table), encoding="utf-8")
    return written


def markdown(table: pd.DataFrame) -> str:
    """Every row: medians over rounds, with quartiles."""
    lines = [
        "| axis | model | tokens | width x vocabulary | processes | method | step, plain | time (quartiles) | memory |",
        "| --- | --- | --- | --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in table.itertuples():
        time = f"{row.time_ratio:.2f} ({row.time_q25:.2f}-{row.time_q75:.2f})"
        memory = "" if pd.isna(row.torch_ratio) else f"{row.torch_ratio:.3f}"
        sizes = [f"{row.batch} x {row.tokens}", f"{row.width} x {row.vocabulary}", str(row.processes)]
        cells = [row.axis, row.model, *sizes, row.method, f"{row.plain_ms:.0f} ms", time, memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(*main(*map(Path, sys.argv[1:])), sep="\n")
