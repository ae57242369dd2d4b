"""``hf-fam layers``: its arguments, and the table that it prints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..inputs.text import printable
from .argument_types import whole
from .quiet import quiet_libraries

if TYPE_CHECKING:
    from .layer_table import LayerRow, LayerTable

# Number of layers to show without --all.
_LAST = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with a config.json, or a model on the Hub")
    add(
        "--task",
        help="task of the head (AutoModelFor...): sequence-classification, token-classification, causal-lm, "
        "seq2seq-lm, image-classification ...; default: the class in config.json",
    )
    add("--num_labels", type=whole(1, 1_000_000), metavar="N", help="number of classes of the head")
    add("--length", type=whole(1), default=64, metavar="N", help="tokens in a text (default: 64)")
    add("--trust_remote_code", action="store_true", help="run code that is saved with the model")
    add("--all", action="store_true", help=f"show all layers, not only the last {_LAST}")
    add("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    """Print the layers of a model.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: the model cannot be found or built; the message is a sentence.
    """
    from .layer_table import layer_table, load_model

    quiet_libraries()
    table = layer_table(
        load_model(options.model, options.task, options.num_labels, options.trust_remote_code), options.length
    )
    shown = table if options.all else table.last(_LAST)
    print(shown.to_json() if options.json else printable(format_layers(shown, len(table.layers), options.length)))


def format_layers(table: LayerTable, count: int, length: int) -> str:
    """Return the table as aligned text, with a legend.

    Args:
        table: the rows to show.
        count: number of layers of the model.
        length: tokens in the texts of the cost estimate.
    """
    from ..layer.kinds import SUPPORTED
    from .layer_table import UNSUPPORTED

    order = "in the order of their definition" if table.untraced else "in the order of their calls"
    part = "" if len(table.layers) == count else f"; the last {len(table.layers)} of {count}, --all shows all"
    lines = [f"{table.model}: layers that fam_layer can name, {order}{part}", ""]
    lines += _aligned([("fam_layer", "role", "d x m", "rows", "estimator", "cost", ""), *map(_cells, table.layers)])
    lines += ["", 'fam_layer="auto" is the head. d x m: outputs by features; rows: feature vectors of an item.']
    if table.untraced:
        lines.append(f"Order and costs are unknown, because the model cannot be called without data: {table.untraced}")
        lines.append('Layers below attention need attn_implementation="eager".')
    else:
        texts = f" (texts of {length} tokens)" if table.takes_texts else ""
        lines.append(f"cost: a rough estimate, from FLOPs, of the extra time of a training step{texts}.")
    rows = [row for row in table.layers if row.estimator]
    if any(row.needs_eager for row in rows):
        lines.append('eager: below attention; load the model with attn_implementation="eager".')
    if any((row.times or 1) > 1 for row in rows):
        lines.append("called n times: one weight in n places; kappa is that of the weight, over all its calls.")
    if any(row.why_not == UNSUPPORTED for row in table.layers):
        lines.append(f"unsupported: feature layers are {SUPPORTED}.")
    return "\n".join(lines)


def _cells(row: LayerRow) -> tuple[str, ...]:
    notes = [row.why_not or ""]
    if row.estimator:
        notes += ["eager" if row.needs_eager else "", f"called {row.times} times" if (row.times or 1) > 1 else ""]
    return (
        row.name,
        row.role or "-",
        f"{row.outputs} x {row.features}",
        "?" if row.rows is None else str(row.rows),
        row.estimator or "-",
        "-" if not row.estimator else "?" if row.cost is None else format_cost(row.cost),
        ", ".join(filter(None, notes)),
    )


def format_cost(cost: float) -> str:
    """Return a fraction as a rounded percentage.

    Examples:
        >>> format_cost(0.002), format_cost(0.127), format_cost(1.04)
        ('< 1 %', '13 %', '104 %')
    """
    return "< 1 %" if cost < 0.01 else f"{cost:.0%}".replace("%", " %")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
