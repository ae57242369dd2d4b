"""Models of transformers: fine-tuned, or with new weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig

from .arguments import ModelArguments


def load_model(model_args: ModelArguments, auto: Any, **changes: Any) -> Any:
    """The model that is trained.

    Args:
        model_args: which one.
        auto: class that makes it, such as ``AutoModelForCausalLM``.
        **changes: entries of its configuration.

    Raises:
        ValueError: the head that was saved is for another number of classes.
    """
    given = model_args.hub()
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, **changes, **given)
    if model_args.from_scratch:
        config._name_or_path = ""  # the card must not call it fine-tuned
        return auto.from_config(config, trust_remote_code=model_args.trust_remote_code, **attention)
    try:
        return auto.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **attention,
            **given,
        )
    except RuntimeError as problem:
        if "ignore_mismatched_sizes" not in str(problem):
            raise
        raise ValueError(
            f"the head of '{model_args.model_name_or_path}' is not for the {config.num_labels} classes of the data: "
            "add --ignore_mismatched_sizes for a new head."
        ) from problem


def load_classifier(model_args: ModelArguments, auto: Any, names: Sequence[str], **changes: Any) -> Any:
    """The same with one output a class, the classes by their names in order."""
    label2id = {name: k for k, name in enumerate(names)}
    return load_model(model_args, auto, id2label=dict(enumerate(names)), label2id=label2id, **changes)
