"""Recipes: complete fine-tuning runs for five tasks, as `hf-fam train` and the scripts in `recipes/` start them.

Every task is a module with a `main`. What they share is in `common`, their default settings are in `configurations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..inputs.text import quote

# The folder of the YAML files with the default settings of each task.
CONFIGURATIONS = Path(__file__).with_name("configurations")
TASKS = ("causal_lm", "image_classification", "text_classification", "text_regression", "token_classification")


def task_called(name: str) -> str:
    """Return the task of a name, which may have dashes in place of underscores; other names as they are.

    Examples:
        >>> task_called("text-classification")
        'text_classification'
    """
    return name.replace("-", "_") if name.replace("-", "_") in TASKS else name


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
    if not isinstance(task, str) or task_called(task) not in TASKS:
        raise ValueError(f"there is no task {quote(task)}: choose one of {', '.join(TASKS)}.")
    return CONFIGURATIONS / f"{task_called(task)}.yaml"


# Default settings for a head on a frozen backbone, which trains in seconds.
FROZEN_DEFAULTS = (
    "--learning_rate=3e-2",
    "--num_train_epochs=60",
    "--per_device_train_batch_size=32",
    "--save_strategy=no",
)


def with_defaults(task: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a recipe after the default settings of the task, unless they start with a YAML file.

    Args:
        task: one of `TASKS`.
        arguments: the arguments as given.

    Examples:
        >>> with_defaults("text_regression", ["mine.yaml", "--seed", "1"])
        ['mine.yaml', '--seed', '1']
    """
    if arguments and not arguments[0].startswith("-"):
        return [*arguments]
    words = {word.replace("-", "_").lower() for word in arguments}
    frozen: list[str] = []
    if words & {"__freeze_backbone", "__freeze_backbone=true"}:
        frozen = [*FROZEN_DEFAULTS]
        frozen += ["--augmentation=none"] if task == "image_classification" else []
        frozen += ["--method=flat_logistic_regression"] if task.endswith("_classification") else []
    return [str(default_configuration(task)), *frozen, *arguments]
