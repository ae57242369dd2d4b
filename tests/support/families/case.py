"""What a case is, and the batches that the cases share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

ITEMS, TOKENS, VOCABULARY, WIDTH, CLASSES, IMAGE, SOUND = 3, 5, 16, 8, 3, 16, 400

Batch = dict[str, Any]
Sizes = dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """What hf_fam does not do, in the words of the support table and by a part of the message that says so."""

    reason: str
    message: str


@dataclass(frozen=True)
class Case:
    """One architecture and task, and what hf_fam has to find in it.

    Attributes:
        model: class of transformers.
        task: what it is trained for.
        sizes: the configuration that makes it tiny.
        batch: makes a batch for a model.
        head: dotted name of the layer into the logits.
        representation: dotted name of the layer that makes what the head reads.
        head_estimator: what ``estimator="auto"`` ends up with at the head.
        refused: by layer, ``"auto"`` or ``"representation"``.
        note: for the support table.
        instead: arguments of FAM that the note proposes where all defaults are refused.
    """

    model: str
    task: str
    sizes: Sizes
    batch: Callable[[nn.Module], Batch]
    head: str
    representation: str
    head_estimator: str = "closed_form"
    refused: dict[str, Refusal] = field(default_factory=dict)
    note: str = ""
    instead: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Name of the case in pytest's output."""
        return f"{self.model}-{self.task.replace(' ', '_')}"

    def name_of(self, layer: str) -> str:
        """The dotted name that ``"auto"`` or ``"representation"`` stands for."""
        return self.head if layer == "auto" else self.representation

    def build(self, **sizes: Any) -> nn.Module:
        """The model with weights of a size that makes every curvature visible."""
        torch.manual_seed(0)
        model_class = getattr(transformers, self.model)
        model = model_class(model_class.config_class(**{**self.sizes, **sizes}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
                elif parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):  # EfficientNet's begin with 0
                    module.weight.normal_(1, 0.1)
        return model

    def inputs(self, model: nn.Module) -> Batch:
        """A batch that leads to a loss."""
        torch.manual_seed(1)
        return self.batch(model)


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in training mode, but without anything random in its forward pass."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    return model.train()


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with its floating-point numbers in another dtype."""

    def convert(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(dtype) if value.is_floating_point() else value
        if isinstance(value, list):
            return [convert(v) for v in value]
        return {k: convert(v) for k, v in value.items()} if isinstance(value, dict) else value

    return convert(batch)


def tokens(*shape: int) -> Tensor:
    """Random tokens, none of them special."""
    return torch.randint(4, VOCABULARY, shape or (ITEMS, TOKENS))


def classes(*shape: int) -> Tensor:
    """Random labels."""
    return torch.randint(0, CLASSES, shape or (ITEMS,))


def images(*shape: int) -> Tensor:
    """Random pixels."""
    return torch.randn(ITEMS, 3, IMAGE, IMAGE)


def positions() -> Tensor:
    """Random positions in a text."""
    return torch.randint(0, TOKENS, (ITEMS,))


def batch_of(**make: Callable[[], Any]) -> Callable[[nn.Module], Batch]:
    """A batch that is made anew for every model."""
    return lambda model: {name: one() for name, one in make.items()}


def language_model(model: nn.Module) -> Batch:
    """The labels are the tokens themselves."""
    ids = tokens()
    return {"input_ids": ids, "labels": ids.clone()}


def masked_language_model(model: nn.Module) -> Batch:
    """Some of the tokens are labels."""
    ids = tokens()
    hidden = torch.rand(ids.shape) < 0.5
    hidden[:, 0] = True
    return {"input_ids": ids, "labels": ids.masked_fill(~hidden, -100)}


def rows(batch: Batch) -> Iterator[Batch]:
    """The items of a batch, as a data set has them."""
    for k in range(ITEMS):
        yield {name: value[k] if isinstance(value, (Tensor, list)) else value for name, value in batch.items()}


def collate(items: list[Batch]) -> Batch:
    """A batch from items: tensors are stacked, dictionaries listed, switches taken once."""
    batch = {}
    for name, first in items[0].items():
        values = [item[name] for item in items]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values if isinstance(first, dict) else first
    return batch
