"""The command ``hf-fam``: flat training, what can be flattened, how flat it is, and flattening at work.

torch and transformers are imported by the subcommands alone, so that ``--help`` is immediate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from .measure_command import add_arguments as add_measure_arguments
from .train_command import add_arguments as add_train_arguments

if TYPE_CHECKING:
    from .layer_table import LayerRow, LayerTable

LAST = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; by default those of the command line.

    Returns:
        The exit status, 1 after an error that was explained on stderr.

    Raises:
        SystemExit: the arguments cannot be parsed, or ``--help`` or ``--version`` was asked for.

    Examples:
        >>> main(["layers", "no/such/folder"])
        1
    """
    options = _parser().parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options.run(options)
    except ValueError as error:
        print(f"hf-fam {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-fam",
        description="Flatness-aware fine-tuning: change Trainer to FAMTrainer.",
        epilog="`hf-fam COMMAND --help` tells more.",
    )
    parser.add_argument("--version", action="version", version=f"hf-fam {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="fine-tune a model on your own data by one of the recipes",
        description="Fine-tune a model by one of the recipes, on data of your own or from the Hub.",
    )
    add_train_arguments(train)
    train.set_defaults(run=_train)

    layers = commands.add_parser(
        "layers",
        help="list the layers of a model that fam_layer can name, with estimator and expected cost",
        description="List the layers of a model that fam_layer can name. Only its config.json is read, no weights.",
    )
    layers.add_argument("model", metavar="MODEL", help="a folder with a config.json, or a model on the Hub")
    layers.add_argument(
        "--task",
        help="the head to put on it, AutoModelFor...: sequence-classification, token-classification, causal-lm, "
        "seq2seq-lm, image-classification ...; default: the class that the config.json names",
    )
    layers.add_argument("--num_labels", type=_positive, metavar="N", help="number of classes of the head")
    layers.add_argument("--length", type=_positive, default=64, metavar="N", help="tokens in a text (default: 64)")
    layers.add_argument("--all", action="store_true", help=f"all layers, not only the last {LAST}")
    layers.add_argument("--json", action="store_true", help="print JSON")
    layers.set_defaults(run=_layers)

    measure = commands.add_parser(
        "measure",
        help="measure how flat a trained model is, layer by layer, with a report",
        description="Measure the relative flatness of the layers of a trained model over a data set.",
    )
    add_measure_arguments(measure)
    measure.set_defaults(run=_measure)

    demo = commands.add_parser(
        "demo",
        help="fine-tune a small model with Trainer and with FAMTrainer, side by side (about 6 minutes)",
        description="Fine-tune all-MiniLM-L6-v2 on 30 intents of Banking77, 10 examples each, once with Trainer and "
        "once with FAMTrainer, from the same seed and with the same budget; offline, about 6 minutes on 2 cores.",
    )
    demo.add_argument("--output_dir", type=Path, help="where results go (default: out/demo, or out/demo_frozen)")
    demo.add_argument("--seed", type=int, default=0, help="seed of both runs, or the first one (default: 0)")
    demo.add_argument("--model", type=Path, help="another encoder with a tokenizer, a folder, instead of all-MiniLM")
    demo.add_argument(
        "--frozen_trunk",
        action="store_true",
        help="another case, on stored sentence embeddings: one layer with FAM's defaults, and two with FAM at the "
        "hidden one and lambda 0.01; five seeds, all labels right and a fifth of them wrong",
    )
    demo.add_argument("--quick", action="store_true", help="5 intents, 3 epochs: does it run? The numbers mean nothing")
    demo.set_defaults(run=_demo)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _train(options: argparse.Namespace) -> None:
    from .train_command import run

    run(options.task, options.recipe_arguments)


def _layers(options: argparse.Namespace) -> None:
    import transformers

    from .layer_table import layer_table, load_model

    transformers.logging.set_verbosity_error()
    table = layer_table(load_model(options.model, options.task, options.num_labels), options.length)
    shown = table if options.all else table.last(LAST)
    print(shown.to_json() if options.json else format_layers(shown, len(table.layers), options.length))


def _measure(options: argparse.Namespace) -> None:
    from .measure_command import run

    run(options, options.arguments)


def _demo(options: argparse.Namespace) -> None:
    import transformers

    from .demo import DemoSettings, FrozenSettings, run_demo, run_frozen_demo

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # that of loading weights; the training keeps its own
    kind, run = (FrozenSettings, run_frozen_demo) if options.frozen_trunk else (DemoSettings, run_demo)
    make: Any = kind.quick if options.quick else kind
    folder = {"output_dir": options.output_dir} if options.output_dir else {}  # each case has its own by default
    run(make(seed=options.seed, model=options.model, **folder))


def format_layers(table: LayerTable, count: int, length: int) -> str:
    """The table as aligned text, with what has to be known to read it.

    Args:
        table: the rows to show.
        count: how many layers the model has.
        length: of the texts that costs were estimated for.
    """
    from ..layer.kinds import SUPPORTED
    from .layer_table import UNSUPPORTED

    order = "in the order of their definition" if table.untraced else "in the order of their calls"
    part = "" if len(table.layers) == count else f"; the last {len(table.layers)} of {count}, --all shows all"
    lines = [f"{table.model}: layers that fam_layer can name, {order}{part}", ""]
    lines += _aligned([("fam_layer", "role", "d x m", "rows", "estimator", "cost", ""), *map(_cells, table.layers)])
    lines += ["", 'fam_layer="auto" is the head. d x m: outputs by features; rows: feature vectors of an item.']
    if table.untraced:
        lines.append(f"Order and costs are unknown, as the model cannot be called without data: {table.untraced}")
        lines.append('Layers below attention need attn_implementation="eager".')
    else:
        lines.append(
            f"cost: a rough estimate, from FLOPs, of the extra time of a training step (texts of {length} tokens)."
        )
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
    """A fraction as a rounded percentage.

    Examples:
        >>> format_cost(0.002), format_cost(0.127), format_cost(1.04)
        ('< 1 %', '13 %', '104 %')
    """
    return "< 1 %" if cost < 0.01 else f"{cost:.0%}".replace("%", " %")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
