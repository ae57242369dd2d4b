"""Fine-tune a model that classifies texts or pairs of texts, or gives them a number: GLUE by name, or one's own files.

accelerate launch recipes/text_classification/run.py recipes/text_classification/fam.yaml --task_name rte
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

sys.path.append(str(Path(__file__).parents[2]))

from datasets import DatasetDict
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_fam import FAMTrainingArguments
from recipes.common import metrics
from recipes.common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from recipes.common.data import (
    TEST,
    TRAIN,
    VALIDATION,
    class_names,
    class_number,
    has_labels,
    load_parts,
    require_column,
    require_values,
)
from recipes.common.models import load_classifier
from recipes.common.training import Run, begin, finetune

GLUE = "nyu-mll/glue"
# The columns of each task's texts.
TASKS = {
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
# What to look for in files of one's own.
USUAL = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("text",), ("sentence",))


@dataclass
class TextArguments(DataArguments):
    """Texts and their labels; the type of the labels decides: float is regression, all else classification."""

    task_name: Optional[str] = field(default=None, metadata={"help": f"GLUE task: {', '.join(TASKS)}."})  # noqa: UP045
    text_column_names: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "One column, or two with a comma between them; found by itself otherwise."}
    )
    label_column_name: str = field(default="label", metadata={"help": "Column of the labels."})
    do_regression: bool = field(default=False, metadata={"help": "Labels are numbers, also if they are whole."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a text is cut."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task_name is None:
            return
        self.task_name = self.task_name.lower()
        if self.task_name == "ax":
            raise ValueError("task_name='ax' has no training data: train with mnli, then predict by --test_file.")
        if self.task_name not in TASKS:
            raise ValueError(f"task_name={self.task_name!r}: choose one of {', '.join(TASKS)}.")
        if self.train_file is None and self.data_dir is None and self.dataset_name is None:
            self.dataset_name, self.dataset_config_name = GLUE, self.task_name

    def splits(self) -> dict[str, str]:
        """MNLI is validated and tested twice: on the kinds of text that it trains on, and on others (``_mm``)."""
        if self.task_name != "mnli" or self.dataset_name != GLUE:
            return super().splits()
        kinds = {"": "matched", "_mm": "mismatched"}
        return {f"{part}{short}": f"{part}_{kind}" for part in (VALIDATION, TEST) for short, kind in kinds.items()}

    @property
    def title(self) -> str:
        """With the task's name."""
        return f"GLUE {self.task_name.upper()}" if self.task_name and self.dataset_name == GLUE else super().title


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    model_args, data, method, args = parse((ModelArguments, TextArguments, MethodArguments, FAMTrainingArguments), argv)
    begin(args)
    with args.main_process_first():
        parts = load_parts(data, model_args, args.seed)
    label = require_column(parts, data.label_column_name, "label_column_name")
    texts = text_columns(parts, data)
    for column in texts:
        require_values(parts, column)
    require_values(DatasetDict({k: part for k, part in parts.items() if not k.startswith(TEST)}), label)
    floats = parts[TRAIN].features[label].dtype in ("float32", "float64")
    regression = data.do_regression or data.task_name == "stsb" or floats
    names = ["score"] if regression else class_names(parts, label)
    tokenizer = AutoTokenizer.from_pretrained(**model_args.tokenizer())
    kind = "regression" if regression else "single_label_classification"
    model = load_classifier(model_args, AutoModelForSequenceClassification, names, problem_type=kind)
    features = parts[TRAIN].features[label]

    def prepare(batch: dict[str, list[Any]], labeled: bool) -> dict[str, Any]:
        encoded = tokenizer(*(batch[name] for name in texts), truncation=True, max_length=data.max_seq_length)
        if labeled:
            values = batch[label]
            numbers = map(number, values) if regression else (class_number(names, features, v) for v in values)
            encoded["labels"] = list(numbers)
        return encoded

    with args.main_process_first():
        parts = DatasetDict(
            {
                k: part.map(
                    prepare,
                    batched=True,
                    remove_columns=part.column_names,
                    fn_kwargs={"labeled": has_labels(part, label)},
                )
                for k, part in parts.items()
            }
        )
    run = Run(
        model_args, data, method, args, model, parts, tokenizer, DataCollatorWithPadding(tokenizer),
        metrics.regression if regression else metrics.classification,
        task="text-classification",
        to_text=(lambda row: f"{row[0]:.4f}") if regression else (lambda row: names[row.argmax()]),
    )  # fmt: skip
    return finetune(run)


def number(value: Any) -> float:
    """The label of a regression.

    Raises:
        ValueError: there is none, in data of which other rows have one.
    """
    if value is None:
        raise ValueError("a label of the test data is empty and others are not: give all numbers, or none.")
    return float(value)


def text_columns(parts: DatasetDict, data: TextArguments) -> tuple[str, ...]:
    """The one or two columns of texts."""
    columns = parts[TRAIN].column_names
    if data.text_column_names:
        asked = tuple(name.strip() for name in data.text_column_names.split(","))
        if len(asked) > 2:
            raise ValueError(f"text_column_names={data.text_column_names!r}: give one column, or two.")
        return tuple(require_column(parts, name, "text_column_names") for name in asked)
    candidates = (TASKS[data.task_name], *USUAL) if data.task_name else USUAL
    for names in candidates:
        if all(name in columns for name in names):
            return names
    raise ValueError(f"no column of texts among {', '.join(map(repr, columns))}: name it with text_column_names.")


if __name__ == "__main__":
    main()
