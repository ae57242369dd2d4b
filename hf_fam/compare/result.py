"""The outcome of a comparison, with its table, its sentences and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .outcome import Outcome
from .sentence import conclusion
from .table import format_table


class ComparisonResult(Outcome):
    """The outcome of a comparison; printed, it is a table with sentences below."""

    def __str__(self) -> str:
        return f"{format_table(self)}\n{conclusion(self)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table and the sentences for a notebook."""
        from .report import html_result

        return html_result(self)

    def save_report(self, file: str | Path, *, title: str = "Comparison of methods", command: str = "") -> None:
        """Write the HTML report; needs matplotlib.

        Args:
            file: the page.
            title: its title, such as the name of the data.
            command: the command line or the code that repeats the comparison.
        """
        from .report import html_report

        Path(file).write_text(html_report(self, title=title, command=command), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, for JSON."""
        methods = []
        for m in self.methods:
            c = m.comparison
            methods.append(
                {
                    "method": m.name,
                    "learning_rate": m.settings.learning_rate,
                    "strength": m.settings.strength,
                    "scores": m.scores.tolist(),
                    "nll": m.nll,
                    "seconds": m.seconds,
                    "verdict": m.verdict,
                    "difference": None if c is None else c.difference,
                    "interval": None if c is None else [c.low, c.high],
                    "probability_of_gain": None if c is None else c.probability_of_gain,
                }
            )
        return {
            "metric": self.metric.name, "margin": self.margin, "seeds": self.seeds, "runs": self.runs,
            "seconds": self.seconds, "methods": methods,
        }  # fmt: skip

    def save_json(self, file: str | Path) -> None:
        """Write all numbers."""
        Path(file).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
