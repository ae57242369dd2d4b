"""Flatness-aware training in which the gradient of kappa moves the layer and what lies above it, and nothing below.

A trunk that moves can lower kappa by itself, where a frozen one leaves it to the layer and what lies above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from hf_fam import RelativeFlatness
from hf_fam.methods import Method
from hf_fam.methods.base import put_in_front
from hf_fam.train.trainer import FAMMixin


class TailOnly(Method):
    """``loss + strength * kappa`` with the Trainer's ``fam_*`` fields; kappa is constant in the trunk's parameters.

    It is not registered, so that only this study knows it.
    """

    name = "fam_tail"
    field = "fam_tail_lambda"
    description = "FAM whose term moves only the layer and what the model defines after it"
    default = 0.01

    def apply(self, trainer: Any) -> None:
        """Add the term.

        Raises:
            ValueError: the Trainer has no ``fam_*`` fields.
        """
        if not isinstance(trainer, FAMMixin):
            raise ValueError(f"method={self.name!r} needs a FAMTrainer with fam_lambda=0.")
        put_in_front(trainer, TailTrainer)
        trainer.start_tail(self.value)


class TailTrainer(Trainer):
    """Adds the term to the loss."""

    def start_tail(self, strength: float) -> None:
        """Turn the term on, before the training."""
        fam: Any = self.fam_args
        model: Any = self.model
        self._strength = strength
        generator = torch.Generator().manual_seed(self.args.seed)
        self._flatness = RelativeFlatness(
            model, fam.fam_layer, fam.fam_estimator, fam.fam_probes, generator, center=fam.fam_center
        )
        parameters = [*model.parameters()]
        first = next(k for k, p in enumerate(parameters) if p is self._flatness.layer.module.weight)
        self._tail = [p for p in parameters[first:] if p.requires_grad]

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss with the term, in training."""
        if not (model.training and torch.is_grad_enabled()):
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        with self._flatness.capture():
            loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        kappa = self._flatness(loss)
        if kappa.requires_grad:  # the first batch only shows the mean of the features
            gradients = torch.autograd.grad(kappa, self._tail, retain_graph=True, allow_unused=True)
            pairs = [(g, p) for g, p in zip(gradients, self._tail, strict=True) if g is not None]
            # Zero, with the tail's part of kappa's gradient.
            kappa = kappa.detach() + sum((g * (p - p.detach())).sum() for g, p in pairs)
        loss = loss + self._strength * kappa
        return (loss, outputs) if return_outputs else loss
