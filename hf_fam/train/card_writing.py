"""The Trainer's model card around names that it does not escape."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from .evaluation_results import evaluation_results
from .model_card import FlatnessSummary, escape_markdown, extend_model_card

# Arguments of Trainer.create_model_card that it puts into text.
_IN_TEXT = ("model_name", "finetuned_from", "dataset")
_PLAIN = re.compile(r"[\w./ :,-]*")
_SCRATCH = "This model was trained from scratch on "
# What the Trainer says of a model that was made from a configuration.
_UNNAMED = "This model is a fine-tuned version of [](https://huggingface.co/) on "


def write_card(
    trainer: Any,
    create: Callable[..., None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    summarize: Callable[[], FlatnessSummary | None],
    command: str | None = None,
) -> None:
    """Let the Trainer write its card, then add what hf_fam knows.

    Names reach the metadata as they are and the text escaped: none can add markup, or end the metadata.

    Args:
        trainer: whose card it is.
        create: the Trainer's own ``create_model_card``, bound.
        args: its positional arguments.
        kwargs: its keywords.
        summarize: what the section says; None for plain training.
        command: what repeats the training.
    """
    signature = inspect.signature(create)
    bound = signature.bind_partial(*args, **kwargs)
    given = bound.arguments
    shown: dict[str, str] = {}
    if set(_IN_TEXT) <= set(signature.parameters):  # TRL's has arguments of its own
        # What the Trainer would take by itself.
        defaults = {
            "finetuned_from": name_of_base_model(trainer.model),
            "model_name": Path(trainer.args.output_dir).name,
            "dataset": given.get("dataset_tags"),
        }
        for name in _IN_TEXT:
            found = defaults[name] if given.get(name) is None else given[name]
            safe = _shielded(found, shown)
            if safe != found:
                given[name] = safe
    model = trainer.accelerator.unwrap_model(trainer.model)
    _remember_tags(model, _listed(given.get("tags")))
    create(*bound.args, **bound.kwargs)
    if not trainer.is_world_process_zero():
        return
    path = Path(trainer.args.output_dir or ".", "README.md")
    _restore(path, shown, trainer.model)
    tags = extend_model_card(path, summarize(), _results(trainer, given, shown), command)
    _remember_tags(model, tags)


def name_of_base_model(model: Any) -> str | None:
    """What was fine-tuned, if it has a name that is not a folder of this machine."""
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return name if name and not Path(name).exists() else None


def _shielded(value: Any, shown: dict[str, str]) -> Any:
    """A name, or several, as text; what was changed is noted under its new form."""
    if isinstance(value, (list, tuple)):
        return [_shielded(item, shown) for item in value]
    if not isinstance(value, str) or (_PLAIN.fullmatch(value) and "\n" not in value):
        return value
    safe = escape_markdown(value)
    shown[safe] = value
    return safe


def _restore(path: Path, shown: dict[str, str], model: Any) -> None:
    """Give the metadata the names as they are, and remove folders of this machine."""
    card = ModelCard.load(path)
    for name, value in vars(card.data).items():
        if isinstance(value, str) and value in shown:
            setattr(card.data, name, shown[value])
        elif isinstance(value, list):
            setattr(card.data, name, [shown.get(v, v) if isinstance(v, str) else v for v in value])
    base = card.data.get("base_model")
    local = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    if isinstance(base, str) and Path(base).exists():
        card.data.pop("base_model")
        card.data.tags = [tag for tag in card.data.tags or [] if base not in tag]
    if local and Path(local).exists():
        card.text = card.text.replace(_SCRATCH, "This model was fine-tuned, from one in a local folder, on ")
    card.text = card.text.replace(_UNNAMED, _SCRATCH)
    card.save(path)


def _results(trainer: Any, given: dict[str, Any], shown: dict[str, str]) -> list[EvalResult]:
    """The last evaluation, if it is known of what task and on what data it was: metadata has to say both."""
    first = {name: _first(given.get(name)) for name in ("tasks", "dataset", "dataset_tags", "dataset_args")}
    first["dataset"] = first["dataset"] or first["dataset_tags"]
    if not first["tasks"] or not first["dataset"]:
        return []
    name = shown.get(first["dataset"], first["dataset"])
    kind = first["dataset_tags"] or name
    return evaluation_results(trainer.state.log_history, first["tasks"], kind, name, first["dataset_args"])


def _first(value: Any) -> str | None:
    return next(iter(_listed(value)), None)


def _remember_tags(model: Any, tags: list[str]) -> None:
    """PEFT replaces a card's tags by those of the base model, each time that it saves."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if tags and hasattr(base, "add_model_tags"):
        base.add_model_tags(tags)


def _listed(value: Any) -> list[str]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
