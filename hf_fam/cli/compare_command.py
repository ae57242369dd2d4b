"""``hf-fam compare``: its arguments, the live table, the conclusion and the report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..inputs.packages import require_packages
from ..inputs.paths import require_writable_file, require_writable_folder
from ..recipes import TASKS, task_called, with_defaults
from ..recipes.common.flag_names import flag_names
from .argument_types import OneLineParser
from .quiet import quiet_libraries
from .train_command import check_arguments

if TYPE_CHECKING:
    from ..compare import ComparisonResult

DEFAULT_METHODS = ("plain", "fam")
# With a frozen backbone, logistic regression is a rival, because most people use it.
FROZEN_METHODS = ("plain", "fam", "logistic_regression", "flat_logistic_regression")
# Settings to try for each method. On a frozen backbone, runs are short and the best learning rates lie further apart.
GRID_SIZE, FROZEN_GRID_SIZE = 6, 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, without heavy imports; those of a recipe are parsed by the recipe."""
    parser.add_argument("task", metavar="TASK", type=task_called, choices=TASKS, help=f"one of {', '.join(TASKS)}")
    parser.add_argument(
        "compare_arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="flags of the comparison and of `hf-fam train TASK`; `hf-fam compare TASK --help` lists them",
    )


def make_parser(task: str) -> OneLineParser:
    """Return the parser of the comparison's own flags."""
    parser = OneLineParser(
        prog=f"hf-fam compare {task}",
        description="Compare training methods with plain training on your own data, over several seeds.",
        epilog=f"All flags of `hf-fam train {task}` work too: data, model and training.",
        allow_abbrev=False,
        passes_unknown=True,
    )

    def add(name: str, **options: Any) -> None:
        parser.add_argument(f"--{name}", **options)

    add("methods", nargs="+", metavar="METHOD", help="methods to compare (default: plain fam; with --freeze_backbone "
        "also logistic_regression and flat_logistic_regression)")  # fmt: skip
    add("metric", default=None, help="metric of the recipe (default: accuracy; for numbers pearson)")
    add("margin", type=float, help="largest difference that makes no practical difference (default: 0.5 points)")
    add(
        "seeds",
        type=int,
        default=12,
        help="largest number of seeds, or of splits if there is no test data (default: 12)",
    )
    add("budget", help="longest time, such as 20m or 2h (default: no limit)")
    add("grid_size", type=int, help=f"number of settings to try for each method (default: {GRID_SIZE}; with "
        f"--freeze_backbone {FROZEN_GRID_SIZE}; 1: no tuning)")  # fmt: skip
    add("tuning_repeats", type=int, default=1, help="seeds for each setting that is tried (default: 1)")
    add("jobs", type=int, default=1, help="number of runs at the same time (default: 1)")
    add("report", type=Path, metavar="FILE.html", help="write a page with figures; needs matplotlib")
    add("json", type=Path, metavar="FILE", help="write all numbers as JSON")
    add("output_dir", type=Path, help=f"folder in which finished runs are kept (default: out/compare/{task})")
    return parser


def run(task: str, arguments: Sequence[str]) -> None:
    """Compare, and print what came out.

    Args:
        task: one of `TASKS`.
        arguments: flags of the comparison and of the recipe.

    Raises:
        ValueError: something cannot be compared; the message is a sentence.
        KeyboardInterrupt: Ctrl-C was pressed; the message says how to go on.
    """
    parser = make_parser(task)
    options, recipe_arguments = parser.parse_known_args(list(arguments))
    check_arguments(recipe_arguments, [*parser.flags, *flag_names(task)])
    folder = options.output_dir or Path("out", "compare", task)
    check_files(options, folder)
    quiet_libraries()
    from ..compare import compare
    from ..compare.processes import Processes
    from ..compare.sentence import display_name
    from ..compare.workers import leave_imports_alone
    from ..methods import method_called
    from ..recipes.common.announcing import data_and_model, print_lines
    from ..recipes.common.command import UNPUBLISHED, drop_flags
    from ..recipes.common.comparison import RecipeTrainers
    from .live_table import LiveTable

    frozen = any(word.replace("-", "_").lower().startswith("__freeze_backbone") for word in recipe_arguments)
    methods = tuple(options.methods or (FROZEN_METHODS if frozen else DEFAULT_METHODS))
    for name in methods:
        method_called(name)
    trainers = RecipeTrainers(task, tuple(with_defaults(task, recipe_arguments)), methods)
    metric = options.metric or trainers.default_metric
    default_size = FROZEN_GRID_SIZE if frozen else GRID_SIZE
    grid_size = default_size if options.grid_size is None else options.grid_size
    table = LiveTable(sys.stdout)
    leave_imports_alone()
    try:
        result = compare(
            trainers,
            trainers.chosen(),
            test_dataset=trainers.test_dataset if trainers.has_test else None,
            scoring_dataset=trainers.scoring_dataset,
            metric=metric,
            margin=options.margin,
            seeds=options.seeds,
            budget=options.budget,
            grid_size=grid_size,
            tuning_repeats=options.tuning_repeats,
            jobs=options.jobs,
            output_dir=folder,
            on_start=lambda start: print_lines([*data_and_model(trainers.run), *start.lines()]),
            on_progress=table.update,
        )
    except KeyboardInterrupt:
        table.close()
        raise KeyboardInterrupt(f"stopped. Finished runs are in {folder}; the same command carries on.") from None
    table.close()
    if not Processes(options.jobs).is_main:
        return
    print(result)
    if result.seeds:
        by = display_name(result.best.name)
        print(f"To train the final model by {by}: {final_command(task, recipe_arguments, result)}")
    if options.json is not None:
        result.save_json(options.json)
    if options.report is not None:
        command = shlex.join(["hf-fam", "compare", task, *drop_flags(list(arguments), UNPUBLISHED)])
        result.save_report(options.report, title=trainers.run.data_args.title, command=command)
        print(f"Report: {options.report}")


def check_files(options: argparse.Namespace, folder: Path) -> None:
    """Refuse files that cannot be written, before the first run.

    Args:
        options: the parsed arguments.
        folder: the folder in which finished runs are kept.

    Raises:
        ValueError: a file cannot be written.
        MissingPackageError: matplotlib is missing.
    """
    for name in ("report", "json"):
        path = getattr(options, name)
        if path is not None:
            require_writable_file(f"--{name}", str(path))
    require_writable_folder("output_dir", str(folder))
    if options.report is not None:
        require_packages("--report", "compare", "matplotlib")


def final_command(task: str, arguments: Sequence[str], result: ComparisonResult) -> str:
    """Return the command that trains the final model by the best method.

    Args:
        task: the task.
        arguments: arguments of the recipe.
        result: the outcome.
    """
    from ..methods import METHODS
    from ..recipes.common.command import UNPUBLISHED, drop_flags

    best = result.best
    field = METHODS[best.name].field
    words = drop_flags(list(arguments), (*UNPUBLISHED, "method", "learning_rate", *([field] if field else [])))
    words += ["--method", best.name, "--output_dir", Path("out", task, best.name).as_posix()]
    if best.settings.learning_rate is not None:
        words += ["--learning_rate", f"{best.settings.learning_rate:g}"]
    if field and best.settings.strength is not None:
        words += [f"--{field}", f"{best.settings.strength:g}"]
    return shlex.join(["hf-fam", "train", task, *words])
