"""A saved model with its tokenizer or image processor, by its folder or its name on the Hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from ..flatness.feature_mean import STATE_KEY
from ..inputs.text import LONGEST_PATH, first_line, quote
from .model_config import load_config, model_class_name


class SavedModelError(ValueError):
    """A model whose files cannot be used; the message says why, in a sentence."""


@dataclass(frozen=True)
class ModelFiles:
    """What is saved beside a model.

    Attributes:
        source: the folder, or the name on the Hub.
        trust_remote_code: run code that is saved there.
    """

    source: str
    trust_remote_code: bool

    def load(self, auto_class: Any, kind: str, **options: Any) -> Any:
        """Return the tokenizer or the image processor."""
        try:
            return auto_class.from_pretrained(self.source, trust_remote_code=self.trust_remote_code, **options)
        except Exception as error:  # of many kinds, of broken files
            name = quote(self.source, LONGEST_PATH)
            raise SavedModelError(f"{name} has no {kind} that can be loaded: {first_line(error)}") from error


def load_saved_model(source: str, trust_remote_code: bool) -> tuple[nn.Module, list[str]]:
    """Return a saved model, and remarks about what is missing in it.

    Args:
        source: the folder, or the name on the Hub.
        trust_remote_code: run code that is saved there.

    Raises:
        ModelConfigError: the model cannot be found.
        SavedModelError: its weights cannot be loaded.
    """
    config = load_config(source, {"trust_remote_code": trust_remote_code})
    name = model_class_name(
        source, config, None, remedy="train one first with `hf-fam train TASK --model_name_or_path ...`."
    )
    options = {"trust_remote_code": trust_remote_code} if name.startswith("Auto") else {}
    try:
        model, info = getattr(transformers, name).from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # of many kinds, of broken files
        raise SavedModelError(
            f"the weights of {quote(source, LONGEST_PATH)} cannot be loaded: {first_line(error)}"
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        return model, [f"Not in the checkpoint, and so random: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}."]
    return model, []


def notes_about_training(source: str) -> list[str]:
    """Return remarks about a model whose training log has another kappa than that of its measurement.

    Args:
        source: the folder of the model, which may have a trainer_state.json.
    """
    try:
        state = json.loads(Path(source, "trainer_state.json").read_text(encoding="utf-8"))
        trained = state["stateful_callbacks"][STATE_KEY]
        smoothing = f"smoothing {float(trained['smoothing']):g}" if "smoothing" in trained else None
        settings = [*(["centered features"] if "mean" in trained else []), *filter(None, [smoothing])]
        layer = quote(str(trained["layer"]))
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or not of FAM
        return []
    return [
        f"FAM trained layer {layer} with {' and '.join(settings)}, and fam_kappa of its log is measured so. The kappa "
        "here is measured without and can be much larger."
    ]
