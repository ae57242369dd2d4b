"""``FlatnessCallback``: relative flatness beside the evaluation loss of any Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import accelerate
from torch import nn
from torch.utils.data import IterableDataset, Subset
from transformers import TrainerCallback

from ..inputs.kinds import require_function
from ..inputs.numbers import require_whole
from ..inputs.text import quote
from ..layer.finding import HEAD
from .data import is_data
from .forward import LossFunction
from .measurement_run import TRACE
from .measuring import checked_layers, checked_options, measure_relative_flatness
from .results import FlatnessTable


class FlatnessCallback(TrainerCallback):
    """Measures kappa at every evaluation, on the same items each time.

    The values are in the evaluation's metrics, in the log history and on the model card. They are ``eval_kappa`` for
    the first layer and ``eval_kappa_<layer>`` for further ones, each with its standard error, ``..._error``.
    ``metric_for_best_model="eval_kappa"`` works, with ``greater_is_better=False``. The callback does not change the
    random state of the training.

    Loggers such as TensorBoard get the metrics before this callback runs. Pass ``trainer`` to log the values there too.

    Args:
        dataset: the data to measure on; by default, the first ``items`` of the evaluation's data.
        layers: as for `measure_relative_flatness`.
        items: number of items of the evaluation's data.
        batch_size: items in a batch.
        collate_fn: makes a batch of items of ``dataset``; by default, the evaluation's collator.
        loss_fn: ``loss_fn(model, batch)``; by default ``model(**batch).loss``, also if the Trainer has another loss.
        trainer: the Trainer whose loggers get the values.
        **options: ``measures``, ``normalize_features``, ``estimator``, ``probes``, ``weight_decay`` or ``seed`` of
            `measure_relative_flatness`.

    Attributes:
        last: the `FlatnessTable` of the last evaluation, None before the first.

    Raises:
        TypeError: any other option, or an argument of a wrong class.
        ValueError: an argument is out of range.

    Examples:
        >>> import tempfile
        >>> from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> data = [{"input_ids": [k, k + 1, 2], "labels": k % 2} for k in range(8)]
        >>> args = TrainingArguments(output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=True, disable_tqdm=True)
        >>> trainer = Trainer(BertForSequenceClassification(config), args, eval_dataset=data)
        >>> trainer.add_callback(FlatnessCallback(items=4))
        >>> metrics = trainer.evaluate()  # doctest: +ELLIPSIS
        {'eval_loss': ...}
        >>> "eval_kappa" in metrics
        True
    """

    def __init__(
        self,
        dataset: Any = None,
        layers: str | nn.Module | Sequence[str | nn.Module] = HEAD,
        *,
        items: int = 256,
        batch_size: int = 32,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        loss_fn: LossFunction | None = None,
        trainer: Any = None,
        **options: Any,
    ) -> None:
        items, batch_size = require_whole("items", items), require_whole("batch_size", batch_size)
        checked_layers(layers)
        for name, function in (("collate_fn", collate_fn), ("loss_fn", loss_fn)):
            require_function(name, function, "a function")
        if dataset is not None and not is_data(dataset):
            raise TypeError(f"dataset={quote(dataset)}: give a data set or a DataLoader, or None.")
        if trainer is not None and not hasattr(trainer, "callback_handler"):
            raise TypeError(f"trainer={quote(trainer)}: give a Trainer, or None.")
        options = checked_options(**{"measures": (TRACE,), **options})
        self._dataset, self._layers, self._items, self._batch_size = dataset, layers, items, batch_size
        self._collate_fn, self._loss_fn, self._trainer, self._options = collate_fn, loss_fn, trainer, options
        self.last: FlatnessTable | None = None

    def __repr__(self) -> str:
        kappas = ", ".join(f"{r.layer}: {r.kappa:.4g}" for r in self.last or ())
        return f"FlatnessCallback(layers={self._layers!r}, items={self._items}, last kappa: {kappas or 'none yet'})"

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        model: Any = None,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure, and add the values to the evaluation's metrics."""
        collate_fn = self._collate_fn or getattr(eval_dataloader, "collate_fn", None)
        self.last = measure_relative_flatness(
            model,
            self._subset(eval_dataloader),
            self._layers,
            batch_size=self._batch_size,
            collate_fn=collate_fn,
            loss_fn=self._loss_fn,
            accelerator=accelerate.Accelerator() if args.world_size > 1 else None,
            progress=False,
            **self._options,
        )
        metrics = {} if metrics is None else metrics
        values = named_values(self.last, prefix_of(metrics))
        metrics.update(values)
        if state.log_history and metrics.keys() & state.log_history[-1].keys():  # the entry of this evaluation
            state.log_history[-1].update(values)
        if self._trainer is not None:
            self._trainer.callback_handler.on_log(args, state, control, dict(values))

    def _subset(self, eval_dataloader: Any) -> Any:
        data = self._dataset if self._dataset is not None else getattr(eval_dataloader, "dataset", None)
        if data is None:
            raise ValueError("FlatnessCallback found no evaluation data: give it a dataset.")
        if self._dataset is not None:
            return data
        if isinstance(data, IterableDataset):
            return _FirstItems(data, self._items)
        return Subset(data, range(min(self._items, len(data))))


class _FirstItems(IterableDataset[Any]):
    """The first items of an iterable data set."""

    def __init__(self, data: IterableDataset[Any], items: int) -> None:
        self._data, self._items = data, items

    def __iter__(self) -> Any:
        return (item for item, _ in zip(self._data, range(self._items), strict=False))


def prefix_of(metrics: dict[str, float]) -> str:
    """Return the prefix of the names of an evaluation's metrics.

    Examples:
        >>> prefix_of({"eval_dev_loss": 1.0, "eval_dev_runtime": 0.1, "epoch": 1.0}), prefix_of({})
        ('eval_dev', 'eval')
    """
    for ending in ("_runtime", "_loss"):
        for name in metrics:
            if name.endswith(ending):
                return name.removesuffix(ending)
    return "eval"


def named_values(table: FlatnessTable, prefix: str) -> dict[str, float]:
    """Return kappa and standard error of every layer under their logged names.

    Args:
        table: the measured layers.
        prefix: prefix of the evaluation's metrics.
    """
    values = {}
    for k, record in enumerate(table):
        name = f"{prefix}_kappa" + (f"_{record.layer}" if k else "")
        values[name] = record.kappa
        if record.standard_error == record.standard_error:
            values[f"{name}_error"] = record.standard_error
    return values
