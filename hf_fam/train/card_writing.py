"""Write the Trainer's model card with escaped names and a section about flatness."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .evaluation_results import evaluation_results
from .model_card import FlatnessSummary, escape_markdown, extend_model_card

# Arguments of Trainer.create_model_card that appear in the text of the card.
_TEXT_ARGUMENTS = ("model_name", "finetuned_from", "dataset")
_SAFE_TEXT = re.compile(r"[\w./ :,-]*")
_FROM_SCRATCH = "This model was trained from scratch on "
# The Trainer writes this about a model that was made from a configuration.
_WITHOUT_BASE_MODEL = "This model is a fine-tuned version of [](https://huggingface.co/) on "


def write_card(
    trainer: Any,
    create: Callable[..., None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    summarize: Callable[[], FlatnessSummary | None],
    command: str | None = None,
) -> None:
    """Write the Trainer's model card, then add the section about flatness.

    Names are escaped in the text and unchanged in the metadata, so that they cannot add markup.

    Args:
        trainer: the ``Trainer``.
        create: bound method ``create_model_card`` of the Trainer's own class.
        args: positional arguments of this method.
        kwargs: keyword arguments of this method.
        summarize: returns the contents of the section, or None for plain training.
        command: command line that repeats the training.
    """
    signature = inspect.signature(create)
    bound = signature.bind_partial(*args, **kwargs)
    arguments = bound.arguments
    original_names: dict[str, str] = {}
    if set(_TEXT_ARGUMENTS) <= set(signature.parameters):  # TRL's method has other arguments
        # The Trainer's own defaults.
        defaults = {
            "finetuned_from": base_model_name(trainer.model),
            "model_name": Path(trainer.args.output_dir).name,
            "dataset": arguments.get("dataset_tags"),
        }
        for name in _TEXT_ARGUMENTS:
            value = defaults[name] if arguments.get(name) is None else arguments[name]
            escaped = _escape(value, original_names)
            if escaped != value:
                arguments[name] = escaped
    model = trainer.accelerator.unwrap_model(trainer.model)
    _remember_tags(model, _as_list(arguments.get("tags")))
    create(*bound.args, **bound.kwargs)
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir or ".", "README.md")
    _restore_names(path, original_names, trainer.model)
    tags = extend_model_card(path, summarize(), _last_evaluation(trainer, arguments, original_names), command)
    _remember_tags(model, tags)


def base_model_name(model: Any) -> str | None:
    """Return the name of the model that was fine-tuned, or None for a local folder."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if name and not Path(name).exists() else None


def _escape(value: Any, original_names: dict[str, str]) -> Any:
    """Return one or several names as text, and store the originals of changed ones."""
    if isinstance(value, (list, tuple)):
        return [_escape(item, original_names) for item in value]
    if not isinstance(value, str) or (_SAFE_TEXT.fullmatch(value) and "\n" not in value):
        return value
    escaped = escape_markdown(value)
    original_names[escaped] = value
    return escaped


def _restore_names(path: Path, original_names: dict[str, str], model: Any) -> None:
    """Restore the names in the metadata, and remove local folders."""
    card = ModelCard.load(path)
    for name, value in vars(card.data).items():
        if isinstance(value, str) and value in original_names:
            setattr(card.data, name, original_names[value])
        elif isinstance(value, list):
            setattr(card.data, name, [original_names.get(v, v) if isinstance(v, str) else v for v in value])
    base = card.data.get("base_model")
    local_name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if isinstance(base, str) and Path(base).exists():
        card.data.pop("base_model")
        card.data.tags = [tag for tag in card.data.tags or [] if base not in tag]
    if local_name and Path(local_name).exists():
        card.text = card.text.replace(_FROM_SCRATCH, "This model was fine-tuned, from one in a local folder, on ")
    card.text = card.text.replace(_WITHOUT_BASE_MODEL, _FROM_SCRATCH)
    card.save(path)


def _last_evaluation(trainer: Any, arguments: dict[str, Any], original_names: dict[str, str]) -> list[EvalResult]:
    """Return the last evaluation.

    It is empty without a task and a data set, which the metadata require.
    """
    first_values = {
        name: _first_of(arguments.get(name)) for name in ("tasks", "dataset", "dataset_tags", "dataset_args")
    }
    first_values["dataset"] = first_values["dataset"] or first_values["dataset_tags"]
    if not first_values["tasks"] or not first_values["dataset"]:
        return []
    name = original_names.get(first_values["dataset"], first_values["dataset"])
    dataset_type = first_values["dataset_tags"] or name
    return evaluation_results(
        trainer.state.log_history, first_values["tasks"], dataset_type, name, first_values["dataset_args"]
    )


def _first_of(value: Any) -> str | None:
    return next(iter(_as_list(value)), None)


def _remember_tags(model: Any, tags: list[str]) -> None:
    """Add tags to the base model, because PEFT writes them over the tags of the card."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if tags and hasattr(base, "add_model_tags"):
        base.add_model_tags(tags)


def _as_list(value: Any) -> list[str]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
