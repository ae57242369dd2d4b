"""Does FAM help a language model under LoRA? The table of docs/language-models.md, from the finished comparison.

python recipes/causal_lm/report.py      # writes docs/generated/causal_lm.md

``results/banking77.jsonl`` has the runs of the comparison in README.md, without their training curves.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas
from scipy import stats

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "docs" / "generated" / "causal_lm.md"
NAMES = {"plain": "plain training", "fam": "FAM, default strength"}


def table(runs: pandas.DataFrame) -> str:
    """Return the held-out NLL of both methods, and their paired difference."""
    final = runs[runs["phase"] == "final"].pivot(index="seed", columns="method", values="nll")
    rates = runs[runs["phase"] == "final"].groupby("method")["learning_rate"].first()
    gain = final["fam"] - final["plain"]
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
    limits = f"{gain.mean():+.4f} ({gain.mean() - half:+.4f} to {gain.mean() + half:+.4f})"
    lines = ["| | held-out NLL | minus plain | learning rate |", "| --- | ---: | ---: | ---: |"]
    for method, name in NAMES.items():
        difference = limits if method == "fam" else ""
        lines.append(f"| {name} | {final[method].mean():.3f} | {difference} | {rates[method]:g} |")
    note = (
        f"Nats a token, {len(final)} paired seeds, 95 % interval without correction for looks. Both methods chose from "
        "two learning rates."
    )
    return "\n".join([*lines, "", note, ""])


def main() -> None:
    file = HERE / "results" / "banking77.jsonl"
    runs = pandas.DataFrame([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])
    OUTPUT.write_text(table(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
