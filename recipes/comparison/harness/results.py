"""What came out of the comparisons of plans, as tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .plan import PLANS, read_question

RESULT = "result.json"
VERDICTS = ("better", "same", "worse", "undecided")


def comparison_tables(folder: Path) -> Iterator[str]:
    """Yield a section for each plan with results.

    Args:
        folder: has a folder for each plan, and in it one for each comparison.
    """
    for plan in sorted({file.parents[1] for file in folder.glob(f"*/*/{RESULT}")}):
        results = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in plan.glob(f"*/{RESULT}")}
        yield "\n".join([f"## {plan.name}\n", *_question(plan.name), *_table(results), "", *_counts(results), ""])


def _question(plan: str) -> Iterator[str]:
    file = PLANS / f"{plan}.yaml"
    if file.is_file():
        yield f"{read_question(file)}\n"


def _table(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield (
        "| comparison | method | seeds | score | minus plain (95 % interval) | verdict | learning rate | strength | "
        "time |\n| --- | --- |" + " ---: |" * 3 + " --- |" + " ---: |" * 3
    )
    for name, result in sorted(results.items()):
        plain = result["methods"][0]
        for method in result["methods"]:
            change = (
                ""
                if method["interval"] is None
                else "{:+.2f} ({:+.2f} to {:+.2f})".format(method["difference"], *method["interval"])
            )
            cells = [name, method["method"], str(result["seeds"]), _mean(method["scores"]), change]
            cells += ["" if method is plain else method["verdict"]]
            cells += ["" if method[key] is None else f"{method[key]:g}" for key in ("learning_rate", "strength")]
            cells.append(f"{method['seconds'] / plain['seconds']:.2f} x" if plain["seconds"] else "")
            yield "| " + " | ".join(cells) + " |"


def _mean(scores: list[float]) -> str:
    return f"{sum(scores) / len(scores):.2f}" if scores else ""


def _counts(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield one sentence for each method; verdicts of different tasks are not corrected for their number."""
    methods = dict.fromkeys(m["method"] for result in results.values() for m in result["methods"][1:])
    for method in methods:
        counts = Counter(m["verdict"] for r in results.values() for m in r["methods"][1:] if m["method"] == method)
        words = ", ".join(f"{verdict} in {counts[verdict]}" for verdict in VERDICTS if counts[verdict])
        yield f"- `{method}` against plain training: {words} of {sum(counts.values())} comparisons."
