"""The Trainer's table in a notebook, with columns for the flatness term."""

from __future__ import annotations

import sys
from typing import Any

# The logged values that get a column. The Trainer's table names a column by what follows the first underscore.
COLUMNS = ("fam_kappa", "fam_term")


def add_flatness_columns(trainer: Any) -> None:
    """Replace the Trainer's table of a notebook by one that shows kappa and its term.

    Nothing happens outside notebooks, or with a table of your own.

    Args:
        trainer: a trainer that has its callbacks.
    """
    notebook = sys.modules.get("transformers.utils.notebook")  # loaded by transformers in notebooks only
    if notebook is None:
        return
    callbacks = trainer.callback_handler.callbacks
    for k, callback in enumerate(callbacks):
        if type(callback) is notebook.NotebookProgressCallback:
            callbacks[k] = _table_with_columns(notebook)()


def _table_with_columns(notebook: Any) -> Any:
    class FlatnessNotebookProgress(notebook.NotebookProgressCallback):  # type: ignore[misc, unused-ignore]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if args.eval_strategy != "no" or "loss" not in logs:
                return
            columns = {name.split("_", 1)[1].capitalize(): logs[name] for name in COLUMNS if name in logs}
            self.training_tracker.write_line({"Step": state.global_step, "Training Loss": logs["loss"], **columns})

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
            last: dict[str, float] = next((log for log in reversed(state.log_history) if "loss" in log), {})
            columns = {name: last[name] for name in COLUMNS if name in last}
            metrics = {} if metrics is None else metrics
            metrics.update(columns)
            super().on_evaluate(args, state, control, metrics=metrics, **kwargs)
            for name in columns:
                metrics.pop(name, None)

    return FlatnessNotebookProgress
