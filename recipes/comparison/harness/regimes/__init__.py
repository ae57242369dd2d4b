"""What is trained, one kind a file."""

from __future__ import annotations

from .base import Regime
from .finetune import FineTuning
from .finetune_images import ImageFineTuning
from .head import Head
from .scratch_images import FromScratch

REGIMES: dict[str, Regime] = {
    "head": Head(),
    "finetune": FineTuning(),
    "finetune_images": ImageFineTuning(),
    "scratch_images": FromScratch(),
}

__all__ = ["REGIMES", "Regime"]
