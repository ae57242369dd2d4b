"""Gaussian noise on the inputs of the classification head."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import register
from .head_inputs import HeadInputs


@register
class FeatureNoise(HeadInputs):
    """Isotropic Gaussian noise whose expected norm is ``strength`` times that of an item's features."""

    name = "feature_noise"
    field = "feature_noise_size"
    description = "Gaussian noise on the features of the head, relative to their norm"
    default = 0.3
    step = 3.0

    def change(self, features: Tensor) -> Tensor:
        """Return the features with noise."""
        scale = features.detach().norm(dim=-1, keepdim=True) / features.shape[-1] ** 0.5
        return features + self.value * scale * torch.randn_like(features)
