"""Noise on the inputs of the layer that makes the representation, and on word embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer

from hf_fam.layer.finding import resolve_layer

from .base import Method, register


class FeatureNoise(Method, ABC):
    """What reaches a layer is changed at random while the model trains."""

    def __init__(self, layer: str = "representation") -> None:
        self._layer = layer

    def attach(self, model: nn.Module, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        _, layer = resolve_layer(model, self._layer)
        layer.register_forward_pre_hook(lambda module, args: (self.change(args[0]),) if module.training else None)

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        self.attach(kwargs["model"], arguments["seed"])
        return super().trainer(arguments, **kwargs)

    @abstractmethod
    def change(self, features: Tensor) -> Tensor:
        """What reaches the layer instead of its features."""


@register("gaussian_noise")
class GaussianNoise(FeatureNoise):
    """Isotropic noise of ``size`` times the features' norm: what delta A phi is without the layer's weight in view."""

    def __init__(self, size: float, layer: str = "representation") -> None:
        super().__init__(layer)
        self._size = size

    def change(self, features: Tensor) -> Tensor:
        noise = torch.randn(features.shape, generator=self._generator)
        norm = features.detach().norm(dim=-1, keepdim=True) / features.shape[-1] ** 0.5
        return features + self._size * norm * noise


@register("dropout")
class Dropout(FeatureNoise):
    """Features are left out with probability ``rate``."""

    def __init__(self, rate: float, layer: str = "representation") -> None:
        super().__init__(layer)
        self._rate = rate

    def change(self, features: Tensor) -> Tensor:
        return F.dropout(features, self._rate)


@register("neftune")
class NEFTune(Method):
    """Uniform noise on word embeddings (Jain et al. 2023), as the Trainer has it built in."""

    regimes = ("finetune",)

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        return super().trainer({**arguments, "neftune_noise_alpha": self._alpha}, **kwargs)
