"""Flatness-aware training: loss + strength * relative flatness of a layer."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from hf_fam import FAMTrainer, FAMTrainingArguments, RelativeFlatness
from hf_fam.train.strength import strength_at

from .base import Method, register
from .penalty import PenaltyTrainer


@register("fam")
class FAM(Method):
    """The library, through `RelativeFlatness` in small networks and through `FAMTrainer` in fine-tuning.

    Args:
        strength: lambda.
        layer: the feature layer.
        estimator: see `RelativeFlatness`.
        gradient: see `RelativeFlatness`.
        probes: see `RelativeFlatness`.
        warmup: fam_warmup_steps.
        features: ``"own"``, or ``"centred"`` on their running mean.
    """

    def __init__(
        self,
        strength: float,
        layer: str,
        estimator: str = "auto",
        gradient: str = "full",
        probes: int | None = None,
        warmup: float = 0.0,
        features: str = "own",
    ) -> None:
        if features not in ("own", "centred"):
            raise ValueError(f"features={features!r}: give 'own' or 'centred'.")
        self._center = features == "centred"
        self._strength, self._layer, self._estimator = strength, layer, estimator
        self._gradient, self._probes, self._warmup = gradient, probes, warmup

    def attach(self, model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._flatness = RelativeFlatness(
            model, self._layer, self._estimator, self._probes, generator, gradient=self._gradient, center=self._center
        )
        self._step, self._steps = 0, 0

    def begin(self, steps: int) -> None:
        self._steps = steps

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        with self.watch():
            loss = super().loss(model, inputs, labels)
        return loss + self.term(loss)

    def watch(self) -> contextlib.AbstractContextManager[Any]:
        self._now = strength_at(self._step, self._strength, self._warmup, self._steps)
        self._step += 1
        return self._flatness.capture(self._now)

    def term(self, loss: Tensor) -> Tensor:
        return self._now * self._flatness(loss)

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        if self._gradient != "full":  # which FAMTrainer does not offer
            if self._warmup:
                raise ValueError("gradient: give 'full' together with warmup.")
            self.attach(kwargs["model"], arguments["seed"])
            return PenaltyTrainer(self, args=TrainingArguments(**arguments), **kwargs)
        args = FAMTrainingArguments(
            **arguments,
            fam_lambda=self._strength,
            fam_layer=self._layer,
            fam_estimator=self._estimator,
            fam_probes=self._probes,
            fam_center=self._center,
            fam_warmup_steps=self._warmup,
        )
        return FAMTrainer(args=args, **kwargs)
