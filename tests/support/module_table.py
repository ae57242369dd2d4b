"""The modules of hf_fam by rooms, with the first line of each one's docstring.

PYTHONPATH=tests python -m support.module_table docs/generated/modules.md
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "hf_fam"
# From the ground upward, as a reader would go through them.
ROOMS = (
    "inputs", "calculus", "processes", "classifier", "layer", "data", "flatness", "train", "measure", "landscape",
    "gan", "frozen", "methods", "compare", "recipes", "cli",
)  # fmt: skip


def module_table() -> str:
    """A heading, a line and a table for every room, as Markdown."""
    parts = []
    for room in ROOMS:
        lines = [
            f"### `{room}`",
            "",
            first_line(PACKAGE / room / "__init__.py"),
            "",
            "| module | what it does |",
            "| --- | --- |",
        ]
        for path in sorted((PACKAGE / room).rglob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"| `{path.relative_to(PACKAGE / room)}` | {first_line(path)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """Of a module's docstring, fit for a cell of a table."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(module_table(), encoding="utf-8")
