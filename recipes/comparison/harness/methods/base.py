"""Plain training, and the places at which another method may differ from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a class known to the plans under a name."""

    def remember(method: type[Method]) -> type[Method]:
        METHODS[name] = method
        return method

    return remember


@register("plain")
class Method:
    """Cross-entropy, AdamW and nothing else. The arguments of a method are its configuration."""

    # Regimes that the method has no meaning in are left out of its plan.
    regimes: tuple[str, ...] = (
        "frozen_mlp",
        "frozen_deep",
        "frozen_head",
        "frozen_images",
        "small_cnn",
        "finetune",
        "finetune_images",
        "scratch_images",
        "scratch_vit",
    )

    def adapt(self, settings: Any) -> Any:
        """Change the regime's settings."""
        return settings

    # In the loop of the small networks.

    def attach(self, model: nn.Module, seed: int) -> None:
        """Prepare a model that is about to be trained."""

    def begin(self, steps: int) -> None:
        """The training is about to make so many steps."""

    def optimizer(self, parameters: Iterable[nn.Parameter], settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)

    def loss(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs), labels)

    def step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the closure clears and computes the gradients and returns the loss."""
        loss = closure()
        optimizer.step()
        return loss

    # With the Trainer.

    def trainer(self, arguments: dict[str, Any], **kwargs: Any) -> Trainer:
        return Trainer(args=TrainingArguments(**arguments), **kwargs)


@register("tuned")
class Tuned(Method):
    """Plain training with other settings: learning rate, epochs ..."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def adapt(self, settings: Any) -> Any:
        return replace(settings, **self._changes)


@register("weight_decay")
class WeightDecay(Tuned):
    """AdamW's decoupled weight decay."""

    def __init__(self, decay: float) -> None:
        super().__init__(weight_decay=decay)
