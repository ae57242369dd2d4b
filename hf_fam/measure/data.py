"""Make batches of a data set or a loader, for one process or several."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..data.checks import IGNORED
from ..inputs.numbers import require_whole
from ..inputs.text import with_article

LABELS = ("labels", "label", "label_ids", "start_positions", "end_positions")


class Batches:
    """The numbered batches of a data set, the same ones in every pass.

    Every process takes its share.

    Args:
        data: a ``DataLoader``, a map-style or iterable data set, or a list of items.
        batch_size: items of a batch, where ``data`` is not a loader.
        collate_fn: how items become a batch; by default transformers' for dictionaries, torch's for the rest.
        rank: number of this process.
        processes: number of processes.
        seed: seed of the order in which a shuffling loader reads.

    Raises:
        TypeError: ``data`` is neither a data set nor a loader.
        ValueError: the data is empty, or the loader was already split over processes.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 32,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        rank: int = 0,
        processes: int = 1,
        seed: int = 0,
    ) -> None:
        self._rank, self._processes, self._seed = rank, processes, seed
        self.length: int | None = None
        self._loader = _loader(data, batch_size, collate_fn, processes)
        try:
            self.length = len(self._loader)
        except TypeError:  # of an iterable data set without a length
            self.length = None
        if self.length == 0:
            raise ValueError("the data is empty: there is no item to measure.")

    def first(self, condition: Callable[[Any], bool] = lambda batch: True) -> Any:
        """Return the first batch that satisfies a condition.

        The batch is the same on every process.

        Args:
            condition: whether to take a batch, for example whether it has a label; by default, every batch is taken.

        Raises:
            ValueError: there is no such batch.
        """
        has_batches = False
        for batch in self._read():
            has_batches = True
            if condition(batch):
                return batch
        if not has_batches:
            raise ValueError("the data is empty: there is no item to measure.")
        raise ValueError(
            f"no item has a label: all labels of the data are {IGNORED}, which means no label. Give data with labels."
        )

    def of_this_process(self, limit: int | None = None) -> Iterator[tuple[int, Any]]:
        """Return an iterator over the numbers and batches of this process.

        Args:
            limit: the largest number of batches; None: all.
        """
        numbered = enumerate(self._read())
        return itertools.islice(((k, b) for k, b in numbered if k % self._processes == self._rank), limit)

    def _read(self) -> Iterable[Any]:
        torch.manual_seed(self._seed)
        try:
            yield from self._loader
        except (ValueError, TypeError, RuntimeError) as error:
            if "length" in str(error) or "stack expects each tensor" in str(error) or "same size" in str(error):
                raise ValueError(
                    f"the items differ in length and cannot be stacked to a batch ({str(error).splitlines()[0]}): give "
                    "collate_fn=DataCollatorWithPadding(tokenizer), or the collator that the Trainer uses."
                ) from error
            raise


def is_data(data: Any) -> bool:
    """Return True for what batches can be made of: a loader, a data set or a list."""
    if isinstance(data, (DataLoader, IterableDataset)):
        return True
    return hasattr(data, "__getitem__") and not isinstance(data, (Mapping, str, bytes, type))


def _loader(data: Any, batch_size: int, collate_fn: Callable[[list[Any]], Any] | None, processes: int) -> Any:
    if isinstance(data, DataLoader):
        if processes > 1 and type(data).__module__.startswith("accelerate"):
            raise ValueError(
                "the loader was prepared by accelerate and is already split over the processes: pass the loader from "
                "before accelerator.prepare(), which is split here."
            )
        return data
    if not is_data(data):
        hint = "; choose a split" if isinstance(data, Mapping) else ""
        raise TypeError(
            f"data is {with_article(type(data).__name__)}: give a Dataset, a list of items or a DataLoader{hint}."
        )
    batch_size = require_whole("batch_size", batch_size)
    if hasattr(data, "__len__"):
        if len(data) == 0:
            raise ValueError("the data is empty: there is no item to measure.")
        if collate_fn is None and isinstance(data[0], Mapping):
            from transformers import default_data_collator

            collate_fn = default_data_collator
    return DataLoader(data, batch_size=batch_size, collate_fn=collate_fn)


def select_arguments(model: nn.Module, batch: Any) -> Any:
    """Return the entries of a batch that the model's forward method takes.

    The Trainer selects columns by the same rule.
    """
    if not isinstance(batch, Mapping):
        return batch
    parameters = inspect.signature(model.forward).parameters
    named = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    return {k: v for k, v in batch.items() if k in named or k in LABELS}


def count_items(batch: Any) -> int:
    """Return the number of items of a batch.

    It is the length of the labels, or else of the first tensor.
    """
    values = (
        list(batch.values())
        if isinstance(batch, Mapping)
        else list(batch)
        if isinstance(batch, (tuple, list))
        else [batch]
    )
    if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
        values.insert(0, batch["labels"])
    for value in values:
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise ValueError("the batch contains no tensor, so its items cannot be counted.")


def item_weights(model: nn.Module, batch: Any, items: int) -> Tensor:
    """Return the weight of every item in the mean loss of a batch.

    The weight is 1, or the item's number of labeled tokens if the loss is a mean over tokens.

    An item without a label has weight 0. In a tuple, it is unknown which tensor holds the labels, so every item counts.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    ones = torch.ones(items, dtype=torch.float64)
    if not isinstance(labels, Tensor) or labels.dim() not in (1, 2) or labels.shape[0] != items:
        return ones
    if labels.is_floating_point():
        return ones
    if labels.dim() == 2 and _predicts_the_next_token(model):
        labels = labels[:, 1:]  # each token is predicted from those before it
    elif _labels_are_numbers(model, labels):
        return ones
    return (labels != IGNORED).view(items, -1).sum(1).double().cpu()


def _labels_are_numbers(model: nn.Module, labels: Tensor) -> bool:
    """Return True if labels are numbers and not classes.

    Then -100 is a value like any other.
    """
    config = getattr(model, "config", None)
    problem = getattr(config, "problem_type", None)
    if problem is None:  # transformers' rule for the labels of items
        return labels.dim() == 1 and getattr(config, "num_labels", None) == 1
    return problem in ("regression", "multi_label_classification")


def _predicts_the_next_token(model: nn.Module) -> bool:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    name, kind = type(model).__name__, getattr(model, "loss_type", None)
    return "CausalLM" in name or "LMHead" in name or kind in ("ForCausalLM", "ForConditionalGeneration")


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [to_device(v, device) for v in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)  # fields: a named tuple
    return batch
