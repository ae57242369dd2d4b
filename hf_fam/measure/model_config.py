"""The configuration of a saved model, and the class to build from it."""

from __future__ import annotations

import os
from typing import Any

import transformers
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers.models.auto import modeling_auto

from .._compat import serves_config
from ..inputs.text import LONGEST_PATH, LONGEST_VALUE, first_line, one_line, quote, with_article

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
# What the tasks of ``hf-fam train`` are called here, if they have another name.
OTHER_NAMES = dict.fromkeys(("text-classification", "text-regression"), "sequence-classification")


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
    name = quote(source, LONGEST_PATH)
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise ModelConfigError(f"folder {name} contains no config.json, so it is not a saved model.")
    if os.path.isfile(source):
        raise ModelConfigError(f"{name} is a file: give the folder of a saved model, or a model on the Hub.")
    if not source.strip():
        raise ModelConfigError(f"{name} names no model: give the folder of a saved model, or a model on the Hub.")
    try:
        return transformers.AutoConfig.from_pretrained(source, **{"trust_remote_code": False, **changes})
    except Exception as error:  # of many kinds: configurations are written by others
        reason = {
            LocalEntryNotFoundError: "is no folder here and not in the cache, and the Hub cannot be reached: "
            "check the path.",
            RepositoryNotFoundError: "is no folder here and no model on the Hub: check the name, or run "
            "`hf auth login` if it is private.",
            HFValidationError: "is no folder here and not the name of a model on the Hub: check the path.",
        }.get(type(error.__cause__), f"has no configuration that can be read: {first_line(error)}")
        if "trust_remote_code" in str(error):
            reason = "contains code of its own: read it, and add --trust_remote_code to run it."
        raise ModelConfigError(f"{name} {reason}") from error


def model_class_name(source: str, config: Any, task: str | None, *, remedy: str | None = None) -> str:
    """Return the name of the class to build, of transformers.

    Without a head there is no loss to train, so a backbone needs a task. A model with code of its own is built by the
    ``AutoModelFor...`` that its configuration names.

    Args:
        source: the model, as the user gave it.
        config: its configuration.
        task: one of `TASKS` or of `OTHER_NAMES`, with dashes or underscores; None for the class that the configuration
            names.
        remedy: what to do about a model without a head; by default, to name a task.

    Raises:
        ModelConfigError: the task is unknown, or the configuration names no class with a head.
    """
    if task is not None:
        spelled = task.replace("_", "-")
        spelled = OTHER_NAMES.get(spelled, spelled)
        if spelled not in TASKS:
            raise ModelConfigError(f"--task {one_line(task, LONGEST_VALUE)}: choose one of {', '.join(TASKS)}.")
        return TASKS[spelled]
    name = next(iter(config.architectures or []), None)
    for auto, code in (getattr(config, "auto_map", None) or {}).items():
        if name is not None and str(code).endswith(f".{name}") and auto in TASKS.values():
            return str(auto)
    possible = [t for t, auto in TASKS.items() if serves_config(getattr(transformers, auto), config)]
    if remedy is None:
        remedy = f"choose a head with --task {' | '.join(possible)}." if possible else "no --task fits it."
    shown = quote(source, LONGEST_PATH)
    if name is None:
        raise ModelConfigError(f"the config.json of {shown} names no architecture: {remedy}")
    if not isinstance(name, str) or not hasattr(transformers, name):
        raise ModelConfigError(
            f"{shown} is a {one_line(str(name), LONGEST_VALUE)}, which transformers does not contain: {remedy}"
        )
    if name in _backbones():
        raise ModelConfigError(f"{shown} is {with_article(name)}, which has no head: {remedy}")
    return name


def _backbones() -> set[str]:
    names = modeling_auto.MODEL_MAPPING_NAMES.values()
    return {name for entry in names for name in ([entry] if isinstance(entry, str) else entry)}
