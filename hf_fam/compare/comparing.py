"""Compare training methods with plain training on somebody's own data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..inputs.kinds import require_function, require_instance
from ..inputs.numbers import require_number, require_whole
from ..inputs.paths import require_writable_folder
from ..inputs.rows import select
from ..inputs.text import quote
from ..measure.data import is_data
from ..methods import METHODS, Method, method_called
from .budget import Clock, format_time, parse_budget
from .engine import Engine
from .fingerprint import fingerprint
from .journal import Journal
from .metric import ACCURACY, Metric
from .plan import Plan
from .processes import Processes
from .progress import Progress
from .result import ComparisonResult
from .runs import FINAL, Run, grid
from .splits import Splits, class_labels
from .start import Start
from .training import MakeTrainer, Task, fresh_trainer, measure_run, resolve
from .workers import Workers

BASELINE = "plain"
# Rows of the prediction that finds out, before the first run, which metrics there are.
PROBED_ROWS = 8


def compare(
    make_trainer: MakeTrainer,
    methods: Sequence[str | Method] = ("plain", "fam"),
    *,
    test_dataset: Any = None,
    scoring_dataset: Any = None,
    metric: str | Callable[[Any], Any] = ACCURACY,
    higher_is_better: bool | None = None,
    margin: float | None = None,
    seeds: int = 12,
    budget: str | float | None = None,
    grid_size: int = 6,
    tuning_repeats: int = 1,
    confidence: float = 0.95,
    jobs: int = 1,
    output_dir: str | Path | None = None,
    on_start: Callable[[Start], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> ComparisonResult:
    """Compare tuned training methods with plain training, over paired seeds.

    Learning rate and strength of every method are chosen on validation data, from grids of the same size. Then every
    method trains with fresh seeds; the same seed means the same initial weights, order and examples for every method.
    The comparison stops when every method is decided, when the seeds are used, or when the budget is.

    Args:
        make_trainer: called as ``make_trainer(seed)``; returns a fresh ``Trainer`` of any class with its model, the
            training data and, if there is any, validation data as ``eval_dataset``. Its learning rate is the middle of
            the grids.
        methods: names in `hf_fam.methods.METHODS`, or methods with a strength, which is then tuned around it.
        test_dataset: the test set, or a function that returns it. Without it, repeated stratified splits of the
            training data have test parts of their own.
        scoring_dataset: the training rows without random changes such as augmentation, or a function that returns
            them. Validation and test parts of the training data are scored on it.
        metric: ``"accuracy"``, or another name in what the Trainer's ``compute_metrics`` returns. Or a function of the
            predictions that returns one number, or one number for each test item; their mean is the metric.
        higher_is_better: None: False for losses and errors, by the name.
        margin: the largest difference that makes no practical difference; 0.5 points for metrics in percent.
        seeds: the largest number of seeds, or of splits if there is no test set.
        budget: seconds, or a text such as ``"20m"``; None: no limit.
        grid_size: number of settings that are tried for each method; 1: no tuning.
        tuning_repeats: number of seeds of each setting that is tried, each with validation rows of its own.
        confidence: of the intervals.
        jobs: number of runs at the same time, in processes of their own.
        output_dir: folder in which finished runs are kept. The same call carries on with them.
        on_start: called before the first run, with what the comparison will do.
        on_progress: called after each run.

    Raises:
        ValueError: something cannot be compared; the message is a sentence, before the first run.
        TypeError: the same, of an argument of a wrong class.

    Examples:
        >>> import tempfile, torch
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> data = [{"input_ids": [k, 2], "labels": k % 2} for k in range(16)]
        >>> def make_trainer(seed):
        ...     model = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
        ...     args = TrainingArguments(tempfile.mkdtemp(), seed=seed, max_steps=1, report_to="none", use_cpu=True)
        ...     return Trainer(model=model, args=args, train_dataset=data)
        >>> result = compare(make_trainer, ["plain", "fam"], test_dataset=data, seeds=2, grid_size=1)
        >>> [method.name for method in result.methods], result.runs
        (['plain', 'fam'], 4)
    """
    chosen_methods = _methods(methods)
    seeds, grid_size = require_whole("seeds", seeds, 2), require_whole("grid_size", grid_size)
    tuning_repeats, jobs = require_whole("tuning_repeats", tuning_repeats), require_whole("jobs", jobs)
    confidence = require_number("confidence", confidence, 0, 1, open_low=True, open_high=True)
    if grid_size > 1 and grid_size % 2:
        raise ValueError(f"grid_size={grid_size!r}: give 1, or an even number: every learning rate has two strengths.")
    require_instance("make_trainer", make_trainer, Callable, "a function that returns a Trainer")  # type: ignore[arg-type]
    require_function("on_progress", on_progress, "a function")
    for name, data in (("test_dataset", test_dataset), ("scoring_dataset", scoring_dataset)):
        if data is not None and not callable(data) and (hasattr(data, "dtype") or not is_data(data)):
            raise TypeError(f"{name}={quote(data)}: give a data set with a length, or a function that returns it.")
    if output_dir is not None:
        require_instance("output_dir", output_dir, (str, Path), "a folder")
        require_writable_folder("output_dir", str(output_dir))
    measured = Metric.of(metric, higher_is_better)
    margin = measured.default_margin() if margin is None else margin
    margin = require_number("margin", margin, 0, open_low=True)
    seconds = parse_budget(budget)
    clock = Clock(seconds)
    processes = Processes(jobs)
    probe = fresh_trainer(make_trainer, 0)
    splits = _splits(probe, test_dataset)
    test = resolve(test_dataset)
    _check_trainer(probe)
    base_rate = float(probe.args.learning_rate)
    resolved = {m.name: m.resolve(probe) for m in chosen_methods}
    for method in resolved.values():
        if method.field is not None and method.value == 0:
            raise ValueError(f"{method.field}=0 is plain training, which is compared anyway: give a number above 0.")
    mark = fingerprint(probe, test, measured, splits) if output_dir is not None else ""
    task = Task(make_trainer, test_dataset, scoring_dataset, splits, measured, resolved)
    grids = {name: grid(method, base_rate, grid_size) for name, method in resolved.items()}
    layer = None
    for method in resolved.values():  # refuses what cannot be trained, before the first run
        trainer = fresh_trainer(make_trainer, 0)
        method.apply(trainer)
        if method.name == "fam":
            layer = trainer.relative_flatness.layer.name
        del trainer
    _check_metric(probe, measured)
    device = str(probe.args.device)
    del probe
    plan = Plan([*resolved], grids, splits.has_test, seeds, tuning_repeats)
    needed = None
    if processes.is_alone and (seconds is not None or on_start is not None):  # several would stop at different steps
        needed = measure_run(task, _first_run(plan))
    if seconds is not None and needed is not None:
        _check_budget(plan, seconds, needed, budget, jobs)
    journal = Journal(None if output_dir is None else Path(output_dir), processes.is_main)
    if on_start is not None and processes.is_main:
        on_start(
            Start(
                plan,
                splits,
                test_rows=len(test) if splits.has_test else None,
                layer=layer,
                strengths={name: m.value for name, m in resolved.items() if m.field is not None},
                device=device,
                seconds=needed,
                finished=journal.count(mark),
                folder=None if output_dir is None else str(output_dir),
                jobs=jobs,
                margin=f"{margin:g}{measured.unit}",
            )
        )
    engine = Engine(task, plan, journal, mark, clock, Workers(task, jobs), processes, on_progress)
    details = {
        "learning rate in the middle of the grids": f"{base_rate:g}",
        "settings tried for each method": grid_size,
        "tuning runs of each setting": tuning_repeats,
        "seeds at most": seeds,
        "training rows": splits.count,
        "margin": f"{margin:g}{measured.unit}",
        "budget": budget or "none",
    }
    with engine.workers:
        return engine.compare(margin, confidence, details)


def _methods(methods: Iterable[str | Method]) -> list[Method]:
    if isinstance(methods, (str, Method, Mapping)) or not isinstance(methods, Iterable):
        raise ValueError(f"methods={quote(methods)}: give a list, such as ['plain', 'fam'].")
    made = []
    for method in methods:
        require_instance("methods", method, (str, Method), "names and methods")
        made.append(method_called(method)() if isinstance(method, str) else method)
    names = [m.name for m in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"methods={names!r}: {name!r} occurs twice.")
    if BASELINE not in names:
        made.insert(0, METHODS[BASELINE]())
    made.sort(key=lambda m: m.name != BASELINE)
    if len(made) < 2:
        raise ValueError(f"methods={names!r}: give a method besides {BASELINE}, such as fam.")
    return made


def _splits(trainer: Any, test_dataset: Any) -> Splits:
    data = trainer.train_dataset
    if data is None or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise ValueError("make_trainer: the Trainer needs a train_dataset with a length, which streamed data has not.")
    labels = class_labels(data)
    splits = Splits(labels, len(data), test_dataset is not None, trainer.eval_dataset is not None)
    splits.check(getattr(getattr(trainer.model, "config", None), "id2label", None))
    return splits


def _check_trainer(trainer: Any) -> None:
    if trainer.args.load_best_model_at_end:
        raise ValueError(
            "load_best_model_at_end: a comparison trains every run to its end; turn it off, and early stopping with it."
        )
    if trainer.model_init is not None:
        raise ValueError("model_init: make the model in make_trainer, and give it to the Trainer as model.")


def _check_metric(trainer: Any, metric: Metric) -> None:
    rows = [*range(min(PROBED_ROWS, len(trainer.train_dataset)))]
    predicted = trainer.predict(select(trainer.train_dataset, rows))
    metric.scores(trainer, predicted)


def _first_run(plan: Plan) -> Run:
    tuning, first = plan.tuning(0), plan.methods[0]
    return tuning[0] if tuning else Run(FINAL, first, plan.grids[first][0], 0, 0)


def _check_budget(plan: Plan, seconds: float, needed: float, budget: Any, jobs: int) -> None:
    if needed > seconds:
        least = plan.size(3)
        raise ValueError(
            f"budget={budget!r} is below one run, which takes about {format_time(needed)} here; a first answer needs "
            f"about {least} runs, {format_time(math.ceil(least / jobs) * needed)}: give a larger budget."
        )
