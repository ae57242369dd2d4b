"""The ways in which a model is trained, one a file.

Each has a dataclass ``Settings`` and ``run(split, settings, method, seed, cache)``, which returns an `Outcome`.
"""

from __future__ import annotations

from types import ModuleType

from . import (
    finetune,
    finetune_images,
    frozen_deep,
    frozen_head,
    frozen_images,
    frozen_mlp,
    scratch_images,
    scratch_vit,
    small_cnn,
)
from .outcome import Outcome

REGIMES: dict[str, ModuleType] = {
    "frozen_mlp": frozen_mlp,
    "frozen_deep": frozen_deep,
    "frozen_head": frozen_head,
    "frozen_images": frozen_images,
    "small_cnn": small_cnn,
    "finetune": finetune,
    "finetune_images": finetune_images,
    "scratch_images": scratch_images,
    "scratch_vit": scratch_vit,
}

__all__ = ["REGIMES", "Outcome"]
