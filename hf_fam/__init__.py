"""Flatness-aware fine-tuning: ``Trainer`` becomes ``FAMTrainer``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callback import FAMCallback
    from .flatness_callback import FlatnessCallback
    from .injection import attach
    from .measure import measure_relative_flatness
    from .relative_flatness import RelativeFlatness
    from .trainer import FAMMixin, FAMSeq2SeqTrainer, FAMTrainer
    from .training_args import FAMArguments, FAMSeq2SeqTrainingArguments, FAMTrainingArguments

__version__ = "0.1.0"

# Where each public name lives: `import hf_fam` stays fast, and RelativeFlatness works without transformers' Trainer.
_HOMES = {
    "RelativeFlatness": "relative_flatness",
    "attach": "injection",
    "FAMCallback": "callback",
    "measure_relative_flatness": "measure",
    "FlatnessCallback": "flatness_callback",
    "FAMMixin": "trainer",
    "FAMTrainer": "trainer",
    "FAMSeq2SeqTrainer": "trainer",
    "FAMArguments": "training_args",
    "FAMTrainingArguments": "training_args",
    "FAMSeq2SeqTrainingArguments": "training_args",
}

__all__ = [
    "FAMArguments",
    "FAMCallback",
    "FAMMixin",
    "FAMSeq2SeqTrainer",
    "FAMSeq2SeqTrainingArguments",
    "FAMTrainer",
    "FAMTrainingArguments",
    "FlatnessCallback",
    "RelativeFlatness",
    "attach",
    "measure_relative_flatness",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
