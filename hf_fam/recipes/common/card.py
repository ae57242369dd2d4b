"""The model card of a recipe: how the model was trained, where the Trainer's own list does not say it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import Trainer

from ...methods import method_called
from .arguments import FAM, make_method
from .command import repeat_command
from .run import Run

# The Trainer's list, up to the next heading.
_HYPERPARAMETERS = re.compile(r"### Training hyperparameters\n.*?(?=\n### |\Z)", re.DOTALL)
_INTRODUCTION = "The following hyperparameters were used during training:\n"

# What a fitted classifier was given or has chosen, by its attributes.
_SETTINGS = {"delta_": "δ", "strength_": "λ", "smoothing": "smoothing ε", "C": "C"}


def write_card(trainer: Trainer, run: Run) -> None:
    """Write the model card; with push_to_hub it is pushed together with the model."""
    model_name = run.model_args.model_name_or_path
    fields: dict[str, Any] = {"tasks": run.task, "dataset": run.data_args.title, "dataset_tags": []}
    fields["command"] = repeat_command(trainer.args)
    if run.data_args.dataset_name:
        fields["dataset_tags"] = run.data_args.dataset_name
        fields["dataset_args"] = run.data_args.dataset_config_name or "default"
    if not Path(model_name).is_dir():
        fields["finetuned_from"] = model_name
    if trainer.args.push_to_hub:
        trainer.push_to_hub(**fields)
    else:
        trainer.create_model_card(**fields)


def procedure(run: Run, trainer: Trainer) -> dict[str, str]:
    """Return what the card says about the method of a run, by name; nothing for FAM, which has a section of its own.

    Args:
        run: the run.
        trainer: its ``Trainer``, which has trained.
    """
    name = run.method.method
    if name == FAM:
        return {}
    kind = method_called(name)
    if kind.has_learning_rate:
        strength = f", {kind.field} {make_method(name, run.method, run.args).value:g}" if kind.field else ""
        return {"method": f"{name}{strength}"}
    data: Any = trainer.train_dataset
    lines = {"method": name}
    classifier = getattr(trainer, "classifier", None)
    if classifier is not None:
        origin = "hf_fam" if type(classifier).__module__.startswith("hf_fam.") else "scikit-learn"
        lines["classifier"] = f"{type(classifier).__name__} of {origin}"
        lines |= {
            title: f"{getattr(classifier, field):.4g}"
            for field, title in _SETTINGS.items()
            if hasattr(classifier, field)
        }
        if getattr(classifier, "delta", None) == "auto":
            lines["δ"] += ", chosen by cross-validation on the training samples"
    samples, width = int((data.labels >= 0).sum()), data.features.shape[1]
    return {**lines, "features": f"{width:,}, of the frozen backbone", "training samples": f"{samples:,}"}


def describe_procedure(path: Path, lines: Mapping[str, str], is_fitted: bool) -> None:
    """Put lines about the method into a model card.

    Args:
        path: the README.md that ``Trainer.create_model_card`` wrote.
        lines: what `procedure` returns.
        is_fitted: whether the head was fitted without gradient steps; the Trainer's list, which is about such steps,
            is then left out.
    """
    card = ModelCard.load(path)
    bullets = "\n".join(f"- {name}: {value}" for name, value in lines.items())
    if is_fitted:
        section = (
            "### Fit of the classification head\n\nThe head was fitted to the features of the frozen backbone, without "
            f"gradient steps of the Trainer:\n{bullets}\n"
        )
        card.text = _HYPERPARAMETERS.sub(lambda _: section, card.text)
    else:
        card.text = card.text.replace(_INTRODUCTION, f"{_INTRODUCTION}{bullets}\n")
    card.save(path)
