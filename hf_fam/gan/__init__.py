"""Gradients of generative networks: Lipschitz penalties for critics of Wasserstein GANs.

Imported on demand only: ``from hf_fam.gan import gradient_penalty``. See docs/gan.md.
"""

from __future__ import annotations

from .penalty import gradient_norms, gradient_penalty
from .points import GeneratedPoints, LinePoints, LocalPoints, RealPoints
from .without_gradients import clip_weights, transport_penalty

__all__ = [
    "GeneratedPoints",
    "LinePoints",
    "LocalPoints",
    "RealPoints",
    "clip_weights",
    "gradient_norms",
    "gradient_penalty",
    "transport_penalty",
]
