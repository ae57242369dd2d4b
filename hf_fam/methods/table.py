"""The table of the methods for the documentation.

python -m hf_fam.methods.table > docs/generated/methods.md
"""

from __future__ import annotations

from . import METHODS


def methods_table() -> str:
    """Return the methods, their flags and their defaults as Markdown."""
    lines = ["| method | flag | default | what it does |", "| --- | --- | --- | --- |"]
    for name, kind in sorted(METHODS.items()):
        flag = f"`--{kind.field}`" if kind.field else "-"
        default = "of the estimator" if name == "fam" else "-" if kind.default is None else f"{kind.default:g}"
        lines.append(f"| `{name}` | {flag} | {default} | {kind.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(methods_table(), end="")
