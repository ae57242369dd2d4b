"""What a recipe prepares, for a training or for a comparison of trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ...train.training_args import FAMTrainingArguments
from .arguments import DataArguments, MethodArguments, ModelArguments
from .summary import DataSummary


@dataclass
class Run:
    """Everything that a recipe hands to `finetune`.

    Attributes:
        model_args: name of the model, and how it was loaded.
        data_args: names of the data.
        method: name and settings of the method.
        args: the Trainer's arguments.
        model: the model to train.
        make_model: loads another one; new weights are drawn from the global random state.
        splits: the prepared data.
        processing_class: tokenizer or image processor, saved with the model.
        collator: makes batches of items.
        compute_metrics: computes metrics from logits and labels.
        metric_names: names of these metrics.
        task: task of the model card, such as "text-classification".
        preprocess_logits: reduces logits before they are gathered.
        loss: computes the loss from outputs and labels, instead of the model.
        to_text: turns the logits of an item into its line of the predictions; no predictions are written without it.
        summary: what is printed about the data before the training.
    """

    model_args: ModelArguments
    data_args: DataArguments
    method: MethodArguments
    args: FAMTrainingArguments
    model: PreTrainedModel
    make_model: Callable[[], PreTrainedModel]
    splits: Mapping[str, Any]
    processing_class: Any
    collator: Any
    compute_metrics: Callable[[Any], dict[str, float]] | None
    metric_names: Sequence[str]
    task: str
    preprocess_logits: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    to_text: Callable[[Any], str] | None = None
    summary: DataSummary | None = None
