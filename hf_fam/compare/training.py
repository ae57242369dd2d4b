"""Train and score one run, with any Trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..inputs.kinds import require_instance
from ..inputs.rows import select
from ..methods import Method
from .journal import Record, pack
from .metric import Metric, likelihood
from .runs import FINAL, Run
from .splits import Splits

MakeTrainer = Callable[[int], Trainer]
# Points of the curve of a run, as a fraction of its steps.
CURVE_STEP = 0.05


@dataclass(frozen=True)
class Task:
    """What the runs of a comparison share.

    Attributes:
        make_trainer: makes a fresh Trainer for a seed.
        test_dataset: the test set, a function that returns it, or None.
        scoring_dataset: the training rows as they are scored, a function that returns them, or None for the training
            data itself.
        splits: which rows a run uses.
        metric: the metric.
        methods: the methods by name.
    """

    make_trainer: MakeTrainer
    test_dataset: Any
    scoring_dataset: Any
    splits: Splits
    metric: Metric
    methods: dict[str, Method]


def fresh_trainer(make_trainer: MakeTrainer, seed: int) -> Any:
    """Return the user's Trainer for a seed: silent, and without evaluations and checkpoints during the training.

    Raises:
        TypeError: the function returns something else.
    """
    set_seed(seed)
    trainer = make_trainer(seed)
    require_instance("make_trainer(seed)", trainer, Trainer, "a function that returns a Trainer of transformers")
    args = trainer.args
    args.seed = seed
    args.data_seed = seed if args.data_seed is not None else None
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.disable_tqdm = True
    if args.device.type == "cpu":  # nothing is copied to a device, and torch would warn in every run
        args.dataloader_pin_memory = False
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def execute(task: Task, run: Run) -> Record:
    """Train by a method, score the model and return the record without its key.

    Args:
        task: what all runs share.
        run: the run.

    Returns:
        Among others ``"seconds"``, the time of the training, and ``"all_seconds"``, with loading and prediction.
    """
    begin = time.perf_counter()
    trainer = fresh_trainer(task.make_trainer, run.seed)
    train_rows, score_rows = task.splits.rows(run)
    validation = trainer.eval_dataset
    whole = trainer.train_dataset
    trainer.train_dataset = select(whole, train_rows)
    trainer.eval_dataset = None
    settings = run.settings
    if settings.learning_rate is not None:
        trainer.args.learning_rate = settings.learning_rate
    trainer.args.logging_strategy, trainer.args.logging_steps = IntervalStrategy.STEPS, CURVE_STEP
    set_seed(run.seed)  # making the Trainer may have drawn random numbers
    type(task.methods[run.method])(settings.strength).apply(trainer)
    with tempfile.TemporaryDirectory() as folder:
        trainer.args.output_dir = folder
        start = time.perf_counter()
        diverged = False
        try:
            trainer.train()
        except FloatingPointError:  # a flatness term that is not finite
            diverged = True
        seconds = time.perf_counter() - start
        if score_rows is not None:
            rows = resolve(task.scoring_dataset)
            scored = select(whole if rows is None else rows, score_rows)
        else:
            scored = resolve(task.test_dataset) if run.phase == FINAL else validation
        trainer.args.train_sampling_strategy = "random"  # by length would shuffle the test items, by the seed
        predicted = trainer.predict(scored)
    scores = task.metric.scores(trainer, predicted)
    worst = 0.0 if task.metric.higher_is_better else float(np.finfo(np.float32).max)
    finite = np.nan_to_num(scores, nan=worst, posinf=worst, neginf=worst)
    curve = [[entry["epoch"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    is_diverged = diverged or not np.isfinite(scores).all()
    return {
        **run.describe(),
        "score": float(finite.mean()),
        "items": pack(finite) if run.phase == FINAL and len(finite) > 1 else None,
        "nll": likelihood(trainer, predicted),
        "seconds": round(seconds, 4),
        "all_seconds": round(time.perf_counter() - begin, 4),
        "curve": [[round(epoch, 3), round(loss, 6)] for epoch, loss in curve if np.isfinite(loss)],
        "steps": int(trainer.state.global_step),
        "diverged": is_diverged,
    }


def resolve(dataset: Any) -> Any:
    """Return a data set, or what a function returns."""
    return dataset() if callable(dataset) and not hasattr(dataset, "__getitem__") else dataset


class StopAfter(TrainerCallback):
    """Ends a training after some seconds, and keeps when each step ended.

    Args:
        seconds: time after the first step.
        steps: the fewest steps to make.
    """

    def __init__(self, seconds: float, steps: int = 3) -> None:
        self._seconds, self._steps = seconds, steps
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop if the time is over."""
        self.ends.append(time.perf_counter())
        if len(self.ends) > self._steps and self.ends[-1] - self.ends[0] > self._seconds:
            control.should_training_stop = True


def measure_run(task: Task, run: Run, seconds: float = 2.0) -> float:
    """Return about how many seconds a run takes, from its first steps.

    Args:
        task: what all runs share.
        run: the run.
        seconds: for how long steps are made.
    """
    start = time.perf_counter()
    trainer = fresh_trainer(task.make_trainer, run.seed)
    made = time.perf_counter() - start
    trainer.train_dataset = select(trainer.train_dataset, task.splits.rows(run)[0])
    trainer.eval_dataset = None
    trainer.args.logging_strategy = IntervalStrategy.NO
    timer = StopAfter(seconds)
    trainer.add_callback(timer)
    with tempfile.TemporaryDirectory() as folder:
        trainer.args.output_dir = folder
        trainer.train()
    if len(timer.ends) < 2:
        return time.perf_counter() - start
    step = (timer.ends[-1] - timer.ends[0]) / (len(timer.ends) - 1)
    return made + step * trainer.state.max_steps
