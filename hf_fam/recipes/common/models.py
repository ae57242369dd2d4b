"""Models of transformers: pretrained, or with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..._compat import forget_source
from ...frozen.frozen_backbone import freeze_backbone
from ...measure.model_config import first_line, load_config
from .arguments import ModelArguments


def load_model(model_args: ModelArguments, auto_class: Any, **config_changes: Any) -> Any:
    """Load the model to train.

    Args:
        model_args: name of the model, and how it is loaded.
        auto_class: the class that makes it, such as ``AutoModelForCausalLM``.
        **config_changes: entries of its configuration.

    Raises:
        ValueError: the model cannot be found, or the saved head is for another number of classes.
    """
    options = model_args.hub_options()
    attention = {"attn_implementation": model_args.attn_implementation} if model_args.attn_implementation else {}
    config = load_config(model_args.model_name_or_path, {**config_changes, **options})
    if model_args.from_scratch:
        forget_source(config)  # the card must not call it fine-tuned
        return auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code, **attention)
    try:
        model, loaded = auto_class.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            output_loading_info=True,
            **attention,
            **options,
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"the head of '{model_args.model_name_or_path}' is not for the {config.num_labels} classes of the data: "
            "add --ignore_mismatched_sizes for a new head."
        ) from error
    if model_args.freeze_backbone:
        freeze_backbone(model, loaded["missing_keys"])
    return model


def load_preprocessing(model_args: ModelArguments, auto_class: Any, **options: Any) -> Any:
    """Load the tokenizer or the image processor of a model.

    Args:
        model_args: name of the model, and how it is loaded.
        auto_class: ``AutoTokenizer`` or ``AutoImageProcessor``.
        **options: arguments of ``from_pretrained``.

    Raises:
        ValueError: the model cannot be found, or has no such files.
    """
    try:
        return auto_class.from_pretrained(**options)
    except (OSError, ValueError) as error:
        load_config(model_args.model_name_or_path, model_args.hub_options())  # which says why, if nothing can be loaded
        name = options["pretrained_model_name_or_path"]
        raise ValueError(f"{auto_class.__name__} cannot load '{name}': {first_line(error)}") from error


def load_classifier(model_args: ModelArguments, auto_class: Any, names: Sequence[str], **config_changes: Any) -> Any:
    """Load a model with one output for each class.

    Args:
        model_args: name of the model, and how it is loaded.
        auto_class: the class that makes it, such as ``AutoModelForImageClassification``.
        names: the classes in order.
        **config_changes: entries of its configuration.

    Raises:
        ValueError: the saved head is for another number of classes.
    """
    label2id = {name: k for k, name in enumerate(names)}
    return load_model(model_args, auto_class, id2label=dict(enumerate(names)), label2id=label2id, **config_changes)
