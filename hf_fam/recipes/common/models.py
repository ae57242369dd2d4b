"""Models of transformers: pretrained, or with random weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import Any

from ..._compat import forget_source, serves_config
from ...data.text_length import longest_text
from ...frozen.frozen_backbone import freeze_backbone
from ...inputs.text import LONGEST_PATH, first_line, quote
from ...measure.model_config import load_config
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
    name = quote(model_args.model_name_or_path, LONGEST_PATH)
    config = load_config(model_args.model_name_or_path, {**config_changes, **options})
    try:
        if model_args.from_scratch:
            forget_source(config)  # the card must not call it fine-tuned
            return auto_class.from_config(config, trust_remote_code=model_args.trust_remote_code, **attention)
        model, loaded = auto_class.from_pretrained(
            model_args.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            output_loading_info=True,
            **attention,
            **options,
        )
    except Exception as error:  # of many kinds: models are written by others
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(
                f"the head of {name} is not for the {config.num_labels} classes of the data: add "
                "--ignore_mismatched_sizes for a new head."
            ) from error
        if attention and "attn_implementation" in str(error).lower():
            raise ValueError(
                f"attn_implementation={quote(model_args.attn_implementation)}: {first_line(error)}"
            ) from error
        raise ValueError(f"model_name_or_path={name}: the model cannot be loaded: {first_line(error)}") from error
    warn_of_random_backbone(model, loaded["missing_keys"], name)
    if model_args.freeze_backbone:
        freeze_backbone(model, loaded["missing_keys"])
    return model


def warn_of_random_backbone(model: Any, missing: Collection[str], name: str) -> None:
    """Warn if weights below the head are not in the checkpoint, as with a checkpoint of another architecture.

    Many checkpoints have no pooler, which starts random like the head.

    Args:
        model: the loaded model.
        missing: names of its weights that the checkpoint does not have.
        name: the quoted name of the model.
    """
    below = [key for key in missing if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if below:
        warnings.warn(
            f"{len(below)} weights of the backbone of {name} are not in its checkpoint and start random, such as "
            f"{below[0]}.",
            stacklevel=2,
        )


def load_preprocessing(model_args: ModelArguments, auto_class: Any, model_class: Any, **options: Any) -> Any:
    """Load the tokenizer or the image processor of a model.

    Args:
        model_args: name of the model, and how it is loaded.
        auto_class: ``AutoTokenizer`` or ``AutoImageProcessor``.
        model_class: the class that makes the model, such as ``AutoModelForCausalLM``.
        **options: arguments of ``from_pretrained``.

    Raises:
        ValueError: the model cannot be found, has no such files, or is of another kind.
    """
    try:
        return auto_class.from_pretrained(**options)
    except Exception as error:  # of many kinds, of broken files
        # Loading the configuration gives a clear error if nothing can be loaded.
        config = load_config(model_args.model_name_or_path, model_args.hub_options())
        if not serves_config(model_class, config):
            raise ValueError(
                f"model_name_or_path={quote(model_args.model_name_or_path, LONGEST_PATH)} is a model of type "
                f"{quote(config.model_type)}, for which transformers has no {model_class.__name__}: give another model."
            ) from error
        name = quote(options["pretrained_model_name_or_path"], LONGEST_PATH)
        raise ValueError(f"{auto_class.__name__} cannot load {name}: {first_line(error)}") from error


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


def tokens_within(model: Any, max_seq_length: int) -> int:
    """Return the number of tokens after which texts are cut: max_seq_length, or less if the model has fewer positions.

    Args:
        model: the model.
        max_seq_length: the number that was asked for.
    """
    positions = longest_text(model)
    if positions is None or max_seq_length <= positions:
        return max_seq_length
    warnings.warn(
        f"max_seq_length={max_seq_length}: the model takes {positions} tokens, so texts are cut there.",
        stacklevel=2,
    )
    return positions
