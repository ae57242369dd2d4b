"""Tiny random models of the architectures that people fine-tune, one batch each, and the layers that belong to them.

What hf_fam has to find in a model, and what it cannot do there, is written down here by hand. tests/families proves it,
and `make tables` writes docs/generated/support.md from it.
"""

from __future__ import annotations

from .case import Case, Refusal, collate, in_dtype, rows, without_dropout
from .encoders import ENCODERS
from .language import LANGUAGE_MODELS
from .speech import SPEECH
from .vision import VISION
from .vision_language import VISION_LANGUAGE

CASES = [*ENCODERS, *LANGUAGE_MODELS, *VISION, *SPEECH, *VISION_LANGUAGE]

__all__ = ["CASES", "Case", "Refusal", "collate", "in_dtype", "rows", "without_dropout"]
