"""``hf-fam measure``: its arguments, the measurement and its report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs.numbers import LARGEST_SEED, MOST_PROBES
from ..inputs.packages import require_packages
from ..inputs.paths import require_writable_file
from ..inputs.text import LONGEST_VALUE, one_line, printable, quote
from .argument_types import whole
from .device import choose_device
from .quiet import quiet_libraries

if TYPE_CHECKING:
    from ..measure.findings import MeasuredModel

# Limits of the robustness curve, which takes many forward passes.
_ROBUSTNESS_ITEMS = 64
_ROBUSTNESS_SAMPLES = 4
_ROBUSTNESS_DELTAS = (0.03, 0.1, 0.3, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with a saved model, or a model on the Hub")
    add(
        "--dataset",
        required=True,
        metavar="DATA",
        help="data set on the Hub, file (parquet, csv, tsv, json, jsonl), or folder of such files, of images by class, "
        "or from Dataset.save_to_disk",
    )
    add("--dataset_config", metavar="NAME", help="name of the data set's configuration")
    add("--split", help="name of the split (default: the only one, or train)")
    add("--text_column", metavar="NAME", help="column of the text, or two separated by a comma (default: guessed)")
    add("--image_column", metavar="NAME", help="column of the image (default: guessed)")
    add("--label_column", metavar="NAME", help="column of the label (default: guessed)")
    add("--encoding", metavar="NAME", help="encoding of text files, such as cp1252 (default: utf-8)")
    add("--drop_missing", action="store_true", help="leave out rows with an empty place, instead of refusing them")
    add("--layers", default="auto", help="all, or names separated by commas (default: representation and head)")
    add(
        "--measures",
        help="names separated by commas (default: trace,layerwise,max_eigenvalue; with --layers all, without "
        "max_eigenvalue, which takes many passes over the data for layers below attention)",
    )
    add("--normalize_features", action="store_true", help="divide features by their standard deviations first")
    add(
        "--items",
        type=whole(0),
        default=2000,
        metavar="N",
        help="use at most N items, chosen at random (default: 2000; 0: all)",
    )
    add(
        "--probes",
        type=whole(1, MOST_PROBES),
        default=2,
        metavar="N",
        help="random directions for every batch (default: 2)",
    )
    add("--batch_size", type=whole(1), default=32, metavar="N", help="items in a batch (default: 32)")
    add(
        "--max_length",
        type=whole(1),
        metavar="N",
        help="cut texts after N tokens (default: as in training, 512 at most)",
    )
    add("--seed", type=whole(0, LARGEST_SEED), default=0, help="seed of selection and probes (default: 0)")
    add("--device", help="cpu, cuda, mps ... (default: a GPU if there is one)")
    add("--trust_remote_code", action="store_true", help="run code that is saved with the model")
    add("--report", type=Path, metavar="FILE.html", help="write a page with figures; needs hf-fam[measure]")
    add(
        "--compare_with",
        metavar="MODEL",
        help="a second model, measured on the same items; for --report and --json",
    )
    add("--no_robustness", action="store_true", help="leave the feature-robustness curve out of the report")
    add("--json", type=Path, metavar="FILE", help="write all numbers as JSON")


def run(options: argparse.Namespace, arguments: list[str]) -> None:
    """Measure, print the table, and write the requested files.

    Args:
        options: the parsed arguments.
        arguments: the arguments as given on the command line, for the report.

    Raises:
        ValueError: the model or the data cannot be measured; the message is a sentence.
    """
    _check_files(options)
    if options.dataset_config is not None and os.path.exists(options.dataset):
        raise ValueError(
            f"--dataset_config {one_line(options.dataset_config, LONGEST_VALUE)} does not apply to files: leave it out."
        )
    if options.compare_with is not None and options.report is None and options.json is None:
        raise ValueError("--compare_with needs --report, the page that compares the two models, or --json.")
    if options.report is not None:
        require_packages("--report", "measure", "matplotlib")
    require_packages("this command", "measure", "datasets")
    quiet_libraries()
    device = choose_device(options.device)
    source = _load(options, options.model)
    second = None if options.compare_with is None else _load(options, options.compare_with)
    table = _measure(options, source, device)
    second_table = None if second is None else _measure(options, second, device)
    models = [_with_predictions(options, options.model, source, table)]
    if second_table is not None:
        models.append(_with_predictions(options, options.compare_with, second, second_table))
    notes = [*source.notes]
    if second is not None:
        notes += [f"{printable(options.compare_with)}: {note}" for note in second.notes if note not in source.notes]
    for note in notes:
        print(f"Note: {one_line(note)}")
    print(printable(str(table)))
    _print_quality(models[0])
    if second_table is not None:
        print(f"\n{printable(options.compare_with)}:\n{printable(str(second_table))}")
        _print_quality(models[1])
    if options.json is not None:
        _write_json(options, table, second_table)
    if options.report is not None:
        _report(options, arguments, device, source, models, notes)
        print(f"\nreport: {options.report}")


def _write_json(options: argparse.Namespace, table: Any, second_table: Any) -> None:
    """Write the numbers of the model, and below ``compared_with`` those of the second one."""
    numbers = json.loads(table.to_json(item_kappas=True))
    if second_table is not None:
        second = json.loads(second_table.to_json(item_kappas=True))
        numbers["compared_with"] = {"model": options.compare_with, **second}
    options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _load(options: argparse.Namespace, model: str) -> Any:
    from ..measure.sources import load_source

    return load_source(
        model,
        options.dataset,
        config=options.dataset_config,
        split=options.split,
        text_column=options.text_column,
        image_column=options.image_column,
        label_column=options.label_column,
        encoding=options.encoding,
        drop_missing=options.drop_missing,
        items=options.items or None,
        max_length=options.max_length,
        seed=options.seed,
        trust_remote_code=options.trust_remote_code,
    )


def _measure(options: argparse.Namespace, source: Any, device: str) -> Any:
    from ..calculus.derivatives import SecondDerivativeError
    from ..measure import measure_relative_flatness

    source.model.to(device)
    try:
        return measure_relative_flatness(
            source.model,
            source.items,
            options.layers if options.layers in ("auto", "all") else options.layers.split(","),
            _measures(options),
            normalize_features=options.normalize_features,
            probes=options.probes,
            batch_size=options.batch_size,
            collate_fn=source.collate_fn,
            seed=options.seed,
        )
    except (TypeError, SecondDerivativeError) as error:  # of a layer that cannot be measured
        raise ValueError(f"--layers {quote(options.layers)}: {one_line(str(error), 200)}") from error


def _check_files(options: argparse.Namespace) -> None:
    """Refuse files that cannot be written, before the measurement and not after it."""
    files = {
        f"--{name}": str(getattr(options, name)) for name in ("report", "json") if getattr(options, name) is not None
    }
    for argument, file in files.items():
        require_writable_file(argument, file)
        if os.path.abspath(file) == os.path.abspath(options.dataset):
            raise ValueError(f"{argument} {quote(file)} is the data, which would be overwritten: give another file.")
    if len({os.path.abspath(file) for file in files.values()}) < len(files):
        raise ValueError("--report and --json name the same file: give two.")


def _with_predictions(options: argparse.Namespace, name: str, source: Any, table: Any) -> MeasuredModel:
    from ..measure.class_predictions import predict_classes
    from ..measure.findings import MeasuredModel

    predictions = predict_classes(source.model, source.items, source.collate_fn, options.batch_size)
    return MeasuredModel(name, table, predictions)


def _print_quality(model: MeasuredModel) -> None:
    """Print accuracy and worst class of a classifier; the table has the mean loss of other models."""
    from ..measure.findings import quality

    if model.predictions is not None:
        print(printable(quality(model)))


def _report(
    options: argparse.Namespace,
    arguments: list[str],
    device: str,
    source: Any,
    models: list[MeasuredModel],
    notes: list[str],
) -> None:
    import torch
    import transformers

    from .._version import __version__
    from ..measure.report import html_report
    from ..measure.robustness import feature_robustness
    from ..measure.row_probes import ROW_PROBES

    table = models[0].table
    curve = None
    if not options.no_robustness:
        hidden = [r for r in table if r.estimator in ROW_PROBES]
        layer = max(hidden or table, key=lambda r: abs(r.kappa)).layer
        curve = feature_robustness(
            source.model,
            _first(source.items, _ROBUSTNESS_ITEMS),
            layer,
            _ROBUSTNESS_DELTAS,
            samples=_ROBUSTNESS_SAMPLES,
            batch_size=options.batch_size,
            collate_fn=source.collate_fn,
            seed=options.seed,
        )
    data = options.dataset if os.path.isfile(options.dataset) else f"{options.dataset}, split {source.split}"
    settings = {
        "model": f"{options.model} ({type(source.model).__name__})",
        "data": data,
        **{f"column of the {role}": name for role, name in source.columns.items()},
        **({} if options.compare_with is None else {"compared with": options.compare_with}),
        "features normalized": "yes" if options.normalize_features else "no",
        "probes": options.probes,
        "batch size": options.batch_size,
        "seed": options.seed,
        "seconds": f"{sum(r.seconds for r in table):.1f} on {device}",
        "versions": f"hf_fam {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    page = html_report(
        models[0],
        curve,
        second=models[1] if len(models) > 1 else None,
        data=data,
        settings=settings,
        command=shlex.join(["hf-fam", *arguments]),
        notes=notes,
    )
    options.report.write_text(page, encoding="utf-8")


def _measures(options: argparse.Namespace) -> tuple[str, ...]:
    if options.measures is not None:
        return tuple(options.measures.split(","))
    return ("trace", "layerwise") if options.layers == "all" else ("trace", "layerwise", "max_eigenvalue")


def _first(items: Any, count: int) -> Any:
    return items.select(range(min(count, len(items))))
