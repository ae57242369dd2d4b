"""Gradients of generative networks: Lipschitz penalties for critics, and paths between latent codes.

Imported on demand only: ``from hf_fam.gan import gradient_penalty``. See docs/gan.md and docs/interpolation.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .data import collate_samples
from .distances import earth_movers_distance, frechet_distance
from .interpolation import interpolate
from .latent_path import Interpolation, LatentPath, SamplePath
from .lipschitz import clip_weights, transport_penalty
from .path_comparison import Difference, PathComparison
from .penalty import gradient_norms, gradient_penalty
from .points import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from .random_numbers import ItemRandomNumbers
from .realism_judge import RealismJudge
from .realism_scorer import RealismScorer
from .schedule import CriticSchedule

if TYPE_CHECKING:
    from .trainer import WGANTrainer
    from .training_args import WGANTrainingArguments

# These need transformers and are imported on demand. The rest works with torch alone.
_MODULES = {"WGANTrainer": "trainer", "WGANTrainingArguments": "training_args"}

__all__ = [
    "CriticSchedule",
    "Difference",
    "GeneratedPoints",
    "Interpolation",
    "ItemRandomNumbers",
    "LatentPath",
    "LinePoints",
    "LocalPoints",
    "PathComparison",
    "RealPoints",
    "RealismJudge",
    "RealismScorer",
    "SamplePath",
    "WGANTrainer",
    "WGANTrainingArguments",
    "clip_weights",
    "collate_samples",
    "earth_movers_distance",
    "frechet_distance",
    "gradient_norms",
    "gradient_penalty",
    "interpolate",
    "transport_penalty",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value
