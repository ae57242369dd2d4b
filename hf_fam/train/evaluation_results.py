"""Evaluation results as the metadata of a model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

# Values that an evaluation logs beside its metrics.
_NOT_METRICS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")


def evaluation_results(
    history: Sequence[Mapping[str, Any]], task: str, dataset_type: str, dataset_name: str, config: str | None = None
) -> list[EvalResult]:
    """Return the metrics of the last evaluation in a Trainer's log.

    Args:
        history: the Trainer's ``state.log_history``.
        task: kind of task, such as ``"text-classification"``.
        dataset_type: id of the data set on the Hub, or another name.
        dataset_name: name to display.
        config: configuration of the data set.

    Returns:
        One result for each metric that is a finite number. The list is empty without an evaluation.

    Examples:
        >>> history = [{"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 2.0, "epoch": 1.0}]
        >>> for result in evaluation_results(history, "text-classification", "nyu-mll/glue", "GLUE RTE", "rte"):
        ...     print(result.metric_type, result.metric_value)
        loss 0.5
        accuracy 0.75
    """
    no_logs: Mapping[str, Any] = {}
    logs = next((logs for logs in reversed(history) if "eval_loss" in logs), no_logs)
    metrics = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_config=config,
            metric_type=name,
            metric_value=value,
            metric_name=name,
        )
        for name, value in metrics.items()
        if name not in _NOT_METRICS and isinstance(value, (int, float)) and math.isfinite(value)
    ]
