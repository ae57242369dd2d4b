"""Recipes: complete fine-tuning runs for five tasks, as `hf-fam train` and the scripts in `recipes/` start them.

Every task is a module with a `main`. What they share is in `common`, their default settings are in `configurations`.
"""

from __future__ import annotations

from pathlib import Path

from ..inputs.text import quote

TASKS = ("causal_lm", "image_classification", "text_classification", "text_regression", "token_classification")


def default_configuration(task: str) -> Path:
    """Return the YAML file with the default settings of a task.

    Args:
        task: one of `TASKS`.

    Raises:
        ValueError: there is no such task.

    Examples:
        >>> default_configuration("text_regression").name
        'text_regression.yaml'
    """
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"there is no task {quote(task)}: choose one of {', '.join(TASKS)}.")
    return Path(__file__).with_name("configurations") / f"{task}.yaml"
