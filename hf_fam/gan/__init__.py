"""Gradients of generative networks: Lipschitz penalties for critics, and paths between latent codes.

Imported on demand only: ``from hf_fam.gan import gradient_penalty``. See docs/gan.md and docs/interpolation.md.
"""

from __future__ import annotations

from .interpolation import Interpolation, LatentPath, interpolate
from .penalty import gradient_norms, gradient_penalty
from .points import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from .without_gradients import clip_weights, transport_penalty

__all__ = [
    "GeneratedPoints",
    "Interpolation",
    "LatentPath",
    "LinePoints",
    "LocalPoints",
    "RealPoints",
    "clip_weights",
    "gradient_norms",
    "gradient_penalty",
    "interpolate",
    "transport_penalty",
]
