"""Fine-tune a model that classifies texts or pairs of texts, or predicts a number: a GLUE task, or your own files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from datasets import DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from ..data.checks import require_classes, require_numbers, require_texts
from ..data.columns import other_text_columns, usual_text_columns
from ..data.errors import DataError, named_source
from ..data.splits import TEST, TRAIN, VALIDATION
from ..inputs.numbers import require_number
from ..inputs.text import listed, quote
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments
from .common.classes import (
    class_names,
    class_number,
    classes_of_rows,
    has_labels,
    in_order_of_model,
    refuse_unknown_classes,
)
from .common.data import (
    check_labels,
    check_splits,
    drop_missing,
    label_column,
    load_splits,
    prepare_splits,
    require_column,
    require_column_of_split,
)
from .common.metrics import CLASSIFICATION_METRICS, REGRESSION_METRICS, classification_metrics, regression_metrics
from .common.models import load_classifier, load_preprocessing, tokens_within
from .common.parsing import parse
from .common.run import Run
from .common.selection import select_samples
from .common.summary import summarize
from .common.training import finetune, prepare_run

GLUE = "nyu-mll/glue"
# The GLUE tasks, with the columns of their texts.
GLUE_TASKS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}

# Types of labels that make it a regression.
FLOATS = ("float16", "float32", "float64")


@dataclass
class TextArguments(DataArguments):
    """Texts and their labels. Labels of type float make it a regression."""

    task_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": f"GLUE task: {', '.join(GLUE_TASKS)}."}
    )
    text_column: Optional[str] = field(  # noqa: UP045
        default=None,
        metadata={
            "help": "Column of the texts, or two columns separated by a comma. By default columns with usual names, "
            "such as text, or sentence1 and sentence2."
        },
    )
    label_column: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the labels. By default label, or another usual name."}
    )
    do_regression: bool = field(
        default=False, metadata={"help": "Treat labels as numbers, even if they are whole numbers."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Cut texts to at most N tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_name is None:
            return
        self.task_name = self.task_name.lower()
        if self.task_name == "ax":
            raise ValueError("task_name='ax' has no training data: train with mnli, then predict by --test_file.")
        if self.task_name not in GLUE_TASKS:
            raise ValueError(f"task_name={quote(self.task_name)}: choose one of {', '.join(GLUE_TASKS)}.")
        if self.train_file is None and self.data_dir is None and self.dataset_name is None:
            self.dataset_name, self.dataset_config_name = GLUE, self.task_name

    def hub_split_names(self) -> dict[str, str]:
        """Return the splits that have another name on the Hub, by the name that they get.

        MNLI has two splits each for validation and test: matched and mismatched texts (``_mm``).
        """
        if self.task_name != "mnli" or self.dataset_name != GLUE:
            return super().hub_split_names()
        kinds = {"": "matched", "_mm": "mismatched"}
        return {f"{split}{ending}": f"{split}_{kind}" for split in (VALIDATION, TEST) for ending, kind in kinds.items()}

    @property
    def title(self) -> str:
        """Name of the data for the model card, with the GLUE task."""
        return f"GLUE {self.task_name.upper()}" if self.task_name and self.dataset_name == GLUE else super().title


ARGUMENT_TYPES = (ModelArguments, TextArguments, MethodArguments, FAMTrainingArguments)


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
        label = label_column(splits, data.label_column)
        texts = text_columns(splits, data, label)
        splits = drop_missing(splits, data, texts, label)
        for column in texts:
            if TEST in splits:
                require_column_of_split(splits, TEST, column, "text_column")
            check_splits(splits, require_texts, column)
        feature = splits[TRAIN].features[label]
        is_regression = data.do_regression or data.task_name == "stsb" or getattr(feature, "dtype", "") in FLOATS
        check_labels(splits, label, require_numbers if is_regression else require_classes)
        if not is_regression:
            refuse_unknown_classes(splits, label)
        splits = select_samples(splits, data, args.seed, None if is_regression else label)
        names = ["score"] if is_regression else in_order_of_model(class_names(splits, label), model_args)
        guesses = [name for name in ("text_column", "label_column") if not getattr(data, name)]
        labels = None if is_regression else classes_of_rows(splits[TRAIN], label)
        columns = {"texts": ", ".join(texts), "labels": label}
        summary = summarize(data, splits, columns, guesses, labels, is_stratified=not is_regression)
    tokenizer = load_preprocessing(
        model_args, AutoTokenizer, AutoModelForSequenceClassification, **model_args.tokenizer_options()
    )
    problem_type = "regression" if is_regression else "single_label_classification"
    make_model = functools.partial(
        load_classifier, model_args, AutoModelForSequenceClassification, names, problem_type=problem_type
    )
    model = make_model()
    length = tokenizer.model_max_length = tokens_within(model, data.max_seq_length)  # saved with the model

    def prepare(split: str) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
        is_labeled = has_labels(splits[split], label)

        def tokenize(batch: dict[str, list[Any]]) -> dict[str, Any]:
            encoded = tokenizer(*(batch[name] for name in texts), truncation=True, max_length=length)
            if is_labeled:
                encoded["labels"] = [
                    regression_label(value) if is_regression else class_number(names, feature, value)
                    for value in batch[label]
                ]
            return encoded

        return tokenize

    with args.main_process_first(), named_source(data.source_of):
        prepared = prepare_splits(splits, prepare, batched=True)
    return Run(
        model_args, data, method, args, model, make_model, prepared, tokenizer, DataCollatorWithPadding(tokenizer),
        regression_metrics if is_regression else classification_metrics,
        REGRESSION_METRICS if is_regression else CLASSIFICATION_METRICS,
        task="text-classification",
        to_text=(lambda row: f"{row[0]:.4f}") if is_regression else (lambda row: names[row.argmax()]),
        summary=summary,
    )  # fmt: skip


def regression_label(value: Any) -> float:
    """Return the label of a regression as a number.

    Raises:
        DataError: the label is missing, in data of which other rows have one.
        ValueError: the label is no finite number.
    """
    if value is None:
        raise DataError("a label of the test data is empty and others are not: give all numbers, or none.", TEST)
    return require_number("label", value)


def text_columns(splits: DatasetDict, data: TextArguments, label: str | None = None) -> tuple[str, ...]:
    """Return the one or two columns of the texts.

    They are those that the arguments name, those of the GLUE task, or columns with usual names. Else it is the only
    column of strings that is not named like a label.

    Args:
        splits: the data.
        data: names of the columns, and of the GLUE task.
        label: column of the labels, which is no text.

    Raises:
        DataError: a column is missing, or none can be guessed.
        ValueError: more than two are named.
    """
    columns = splits[TRAIN].column_names
    if data.text_column:
        names = tuple(name.strip() for name in data.text_column.split(","))
        if len(names) > 2:
            raise ValueError(f"text_column={quote(data.text_column)}: give one column, or two.")
        return tuple(require_column(splits, name, "text_column") for name in names)
    if data.task_name and {*GLUE_TASKS[data.task_name]} <= {*columns}:
        return GLUE_TASKS[data.task_name]
    usual = usual_text_columns(name for name in columns if name != label)
    others = [name for name in other_text_columns(splits[TRAIN].features) if name != label]
    if usual or len(others) == 1:
        return usual or (others[0],)
    present = listed(columns)
    raise DataError(f"no column of texts among {present}: name it with text_column.", TRAIN)
