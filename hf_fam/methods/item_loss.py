"""Methods that replace cross-entropy by another loss of logits and labels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .base import Method, MustAct, refuse_without_classes

# The label of rows that no loss counts.
IGNORED = -100


class ItemLoss(Method):
    """A method whose loss is a mean over labeled rows: items, or tokens of items."""

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row.

        Args:
            logits: shape ``(rows, classes)``, float32.
            labels: shape ``(rows,)``, whole numbers.

        Returns:
            shape ``(rows,)``.
        """

    def apply(self, trainer: Any) -> None:
        """Set the Trainer's ``compute_loss_func``."""
        refuse_without_classes(self, trainer)
        loss = MeanLoss(self, shifts_labels(trainer.model))
        trainer.compute_loss_func = loss
        trainer.add_callback(MustAct(self, lambda: loss.is_called))


class MeanLoss:
    """The ``compute_loss_func`` of a Trainer: the mean over all labeled rows of a step, in whatever process they are.

    Args:
        method: the method with the loss of a row.
        is_shifted: True if the label of a token is the next token.
    """

    def __init__(self, method: ItemLoss, is_shifted: bool) -> None:
        self._method, self._is_shifted = method, is_shifted
        self.is_called = False

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Return the loss."""
        self.is_called = True
        rows, targets = labeled_rows(logits_of(outputs), labels, self._is_shifted)
        total = self._method.loss(rows.float(), targets).sum()
        return total / (len(targets) if num_items_in_batch is None else num_items_in_batch)


def shifts_labels(model: Any) -> bool:
    """Return True for a causal language model, in which the label of a token is the next token."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of a model's outputs."""
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits


def labeled_rows(logits: Tensor, labels: Tensor, is_shifted: bool) -> tuple[Tensor, Tensor]:
    """Return the rows that have a label, ``(rows, classes)``, and their labels, ``(rows,)``.

    Examples:
        >>> rows, labels = labeled_rows(torch.zeros(2, 3, 5), torch.tensor([[1, 2, -100], [3, -100, -100]]), True)
        >>> rows.shape, labels.tolist()
        (torch.Size([1, 5]), [2])
    """
    if is_shifted:
        logits, labels = logits[..., :-1, :], labels[..., 1:]
    logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    is_labeled = labels != IGNORED
    return logits[is_labeled], labels[is_labeled]


def probability_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the softmax probability of each row's label, shape ``(rows,)``."""
    return torch.softmax(logits, -1).gather(-1, labels[:, None])[:, 0]
