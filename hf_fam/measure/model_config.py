"""The configuration of a saved model, and the class to build from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers.models.auto import modeling_auto

from .._compat import serves_config

# The values of --task, and the class that builds a model for each.
TASKS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "question-answering": "AutoModelForQuestionAnswering",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
}


class ModelConfigError(ValueError):
    """The model cannot be found or built; the message says why, in a sentence."""


def load_config(source: str, changes: dict[str, Any]) -> Any:
    """Return the configuration of a saved model, with some entries changed.

    Args:
        source: a folder with a config.json, or a model on the Hub.
        changes: new values of entries.

    Raises:
        ModelConfigError: the configuration cannot be found or read.
    """
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelConfigError(f"folder '{source}' contains no config.json, so it is not a saved model.")
    try:
        return transformers.AutoConfig.from_pretrained(source, **changes)
    except (OSError, ValueError) as error:
        reason = {
            LocalEntryNotFoundError: "is no folder here and not in the cache, and the Hub cannot be reached.",
            RepositoryNotFoundError: "is no folder here and no model on the Hub (if private: run `hf auth login`).",
            HFValidationError: "is no folder here and not the name of a model on the Hub.",
        }.get(type(error.__cause__), f"has no configuration that can be read: {first_line(error)}")
        raise ModelConfigError(f"'{source}' {reason}") from error


def model_class_name(source: str, config: Any, task: str | None) -> str:
    """Return the name of the class to build.

    Without a head there is no loss to train, so a backbone needs a task.
    """
    if task is not None:
        if task not in TASKS:
            raise ModelConfigError(f"--task {task}: choose one of {', '.join(TASKS)}.")
        return TASKS[task]
    name = next(iter(config.architectures or []), None)
    possible = [t for t, auto in TASKS.items() if serves_config(getattr(transformers, auto), config)]
    remedy = f"choose a head with --task {' | '.join(possible)}." if possible else "no --task fits it."
    if name is None:
        raise ModelConfigError(f"the config.json of '{source}' names no architecture: {remedy}")
    if not hasattr(transformers, name):
        raise ModelConfigError(f"'{source}' is a {name}, which transformers does not contain: {remedy}")
    if name in _backbones():
        raise ModelConfigError(f"'{source}' is a {name}, which has no head and no loss to train: {remedy}")
    return name


def _backbones() -> set[str]:
    names = modeling_auto.MODEL_MAPPING_NAMES.values()
    return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}


def first_line(error: BaseException) -> str:
    """Return the first line of an error message.

    If the message is empty, it is the name of the error's class.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
