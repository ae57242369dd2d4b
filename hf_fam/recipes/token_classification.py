"""Fine-tune a model that classifies words, such as named entities: a data set on the Hub, or your own files."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import ClassLabel, DatasetDict
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

from ..data.checks import IGNORED, require_tags
from ..data.errors import named_source
from ..data.splits import TEST, TRAIN
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments
from .common.classes import in_order_of_model, no_such_class, refuse_unknown_classes, require_two_classes
from .common.data import (
    check_splits,
    drop_missing,
    load_splits,
    prepare_splits,
    require_column,
    require_column_of_split,
)
from .common.metrics import CLASSIFICATION_METRICS, classification_metrics
from .common.models import load_classifier, load_preprocessing, tokens_within
from .common.parsing import parse
from .common.run import Run
from .common.selection import select_samples
from .common.summary import summarize
from .common.training import finetune, prepare_run


@dataclass
class TokenArguments(DataArguments):
    """Rows with a list of words and a list of their labels; json or parquet, as csv has no lists."""

    text_column: str = field(default="tokens", metadata={"help": "Column of the words."})
    label_column: str = field(default="ner_tags", metadata={"help": "Column of the labels."})
    max_seq_length: int = field(default=128, metadata={"help": "Cut texts to at most N tokens."})
    label_all_tokens: bool = field(
        default=False, metadata={"help": "Label every token of a word. By default only the first one has a label."}
    )


ARGUMENT_TYPES = (ModelArguments, TokenArguments, MethodArguments, FAMTrainingArguments)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe and return its metrics.

    Args:
        argv: the command line without the script; this process's own by default.

    Raises:
        ValueError: arguments or data cannot be used; the message says why.
    """
    return finetune(make_run(argv))


def make_run(argv: Sequence[str] | None = None, methods: Sequence[str] = ()) -> Run:
    """Return the prepared run.

    Args:
        argv: the command line without the script; this process's own by default.
        methods: names of several methods that a comparison trains by; it makes its own splits.

    Raises:
        ValueError: arguments or data cannot be used; the message says why.
    """
    model_args, data, method, args = parse(ARGUMENT_TYPES, argv, methods)
    prepare_run(args, model_args)
    with named_source(data.source_of):
        with args.main_process_first():
            splits = load_splits(data, model_args)
        words = require_column(splits, data.text_column, "text_column")
        label = require_column(splits, data.label_column, "label_column")
        if TEST in splits:
            require_column_of_split(splits, TEST, words, "text_column")
            require_column_of_split(splits, TEST, label, "label_column")
        splits = drop_missing(splits, data, [words], label)
        check_splits(splits, require_tags, words, label)
        refuse_unknown_classes(splits, label)
        splits = select_samples(splits, data, args.seed)
        declared = word_classes(splits, label)
        names = in_order_of_model(declared, model_args)
        summary = summarize(data, splits, {"words": words, "labels": label}, is_stratified=False)
    tokenizer = load_preprocessing(
        model_args, AutoTokenizer, AutoModelForTokenClassification, **model_args.tokenizer_options()
    )
    if not tokenizer.is_fast:
        raise ValueError(
            "tokenizer_name: the model's tokenizer cannot tell which word a token is of: a fast one is needed."
        )
    make_model = functools.partial(load_classifier, model_args, AutoModelForTokenClassification, names)
    model = make_model()
    numbers = {name: k for k, name in enumerate(names)}
    is_numbered = isinstance(item_feature(splits, label), ClassLabel)
    length = tokenizer.model_max_length = tokens_within(model, data.max_seq_length)  # saved with the model

    def prepare(batch: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(batch[words], truncation=True, max_length=length, is_split_into_words=True)
        encoded["labels"] = [
            token_labels(
                encoded.word_ids(k),
                [numbers[declared[value] if is_numbered else str(value).strip()] for value in row],
                label_all=data.label_all_tokens,
            )
            for k, row in enumerate(batch[label])
        ]
        return encoded

    with args.main_process_first(), named_source(data.source_of):
        splits = prepare_splits(splits, lambda split: prepare, batched=True)
    return Run(
        model_args, data, method, args, model, make_model, splits, tokenizer,
        DataCollatorForTokenClassification(tokenizer),
        classification_metrics, CLASSIFICATION_METRICS,
        task="token-classification", loss=functools.partial(mean_over_words, smoothing=args.label_smoothing_factor),
        summary=summary,
    )  # fmt: skip


def mean_over_words(outputs: Any, labels: Tensor, num_items_in_batch: Any = None, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy as a mean over the labeled words of a step.

    Every word counts the same, in whatever micro-batch or process it is. The models' own loss is a mean over the words
    of a micro-batch (transformers issue 47688).

    Args:
        outputs: outputs of the model.
        labels: labels, -100 for none.
        num_items_in_batch: number of labels in the whole step; that of this micro-batch by default.
        smoothing: label smoothing.
    """
    number = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    logits = outputs["logits"].flatten(0, 1).float()
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing) / number


def item_feature(splits: DatasetDict, label: str) -> Any:
    """Return the type of the entries in a column of lists, None if it is not known."""
    return getattr(splits[TRAIN].features[label], "feature", None)


def word_classes(splits: DatasetDict, label: str) -> list[str]:
    """Return the classes in order: as declared by the data, or all labels of the training data, sorted.

    Raises:
        DataError: there is only one class, or a label does not occur in the training data.
    """
    feature = item_feature(splits, label)
    if isinstance(feature, ClassLabel):
        return require_two_classes(feature.names, label)
    present = {name: sorted({str(v).strip() for row in split[label] for v in row}) for name, split in splits.items()}
    names = require_two_classes(present[TRAIN], label)
    for split, classes in present.items():
        unknown = [name for name in classes if name not in names]
        if unknown:  # of rows that were left out of the training data
            raise no_such_class(unknown[0], names, label, split)
    return names


def token_labels(word_ids: Sequence[int | None], labels: Sequence[int], label_all: bool) -> list[int]:
    """Return the label of each token, -100 for none.

    Args:
        word_ids: number of each token's word, None for special tokens.
        labels: label of each word.
        label_all: label all tokens of a word, not only the first one.
    """
    previous = [None, *word_ids][:-1]  # an empty text has no tokens
    return [
        IGNORED if word is None or (word == last and not label_all) else labels[word]
        for word, last in zip(word_ids, previous, strict=True)
    ]
