"""Fine-tune a model that labels words: named entities and the like, by name on the Hub or from one's own files.

accelerate launch recipes/token_classification/run.py recipes/token_classification/fam.yaml --train_file mine.json
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from datasets import ClassLabel, DatasetDict
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

from hf_fam import FAMTrainingArguments
from recipes.common import metrics
from recipes.common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from recipes.common.data import TRAIN, load_parts, require_column, require_values
from recipes.common.models import load_classifier
from recipes.common.training import Run, begin, finetune


@dataclass
class TokenArguments(DataArguments):
    """Rows with a list of words and a list of labels, one a word; json or parquet (csv has no lists)."""

    text_column_name: str = field(default="tokens", metadata={"help": "Column of the words."})
    label_column_name: str = field(default="ner_tags", metadata={"help": "Column of the labels."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens after which a text is cut."})
    label_all_tokens: bool = field(
        default=False, metadata={"help": "Label every token of a word, and not its first one alone."}
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    kinds = (ModelArguments, TokenArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, method, args = parse(kinds, argv)
    begin(args)
    with args.main_process_first():
        parts = load_parts(data, model_args, args.seed)
    words = require_column(parts, data.text_column_name, "text_column_name")
    label = require_column(parts, data.label_column_name, "label_column_name")
    for column in (words, label):
        require_values(parts, column)
    names = word_classes(parts, label)
    tokenizer = AutoTokenizer.from_pretrained(**model_args.tokenizer())
    if not tokenizer.is_fast:
        raise ValueError("the model's tokenizer cannot tell which word a token is of: a fast one is needed.")
    model = load_classifier(model_args, AutoModelForTokenClassification, names)
    numbers = {name: k for k, name in enumerate(names)}
    declared = isinstance(item_feature(parts, label), ClassLabel)

    def prepare(batch: dict[str, list[Any]]) -> dict[str, Any]:
        for row, tags in zip(batch[words], batch[label], strict=True):
            require_one_label_a_word(row, tags)
        encoded = tokenizer(batch[words], truncation=True, max_length=data.max_seq_length, is_split_into_words=True)
        encoded["labels"] = [
            token_labels(
                encoded.word_ids(k), [v if declared else numbers[str(v)] for v in row], every=data.label_all_tokens
            )
            for k, row in enumerate(batch[label])
        ]
        return encoded

    with args.main_process_first():
        parts = DatasetDict(
            {k: part.map(prepare, batched=True, remove_columns=part.column_names) for k, part in parts.items()}
        )
    run = Run(
        model_args, data, method, args, model, parts, tokenizer, DataCollatorForTokenClassification(tokenizer),
        metrics.classification,
        task="token-classification", loss=functools.partial(mean_over_words, smoothing=args.label_smoothing_factor),
    )  # fmt: skip
    return finetune(run)


def mean_over_words(outputs: Any, labels: Tensor, num_items_in_batch: Any = None, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, each labeled word of a step counting the same, whatever micro-batch or process it is in.

    The models' own loss is the mean over the words of a micro-batch (transformers issue 47688).

    Args:
        outputs: of the model.
        labels: -100 where there is none.
        num_items_in_batch: labels of the whole step; of this micro-batch by default.
        smoothing: of the labels.
    """
    number = (labels != metrics.IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    logits = outputs["logits"].flatten(0, 1).float()
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing) / number


def item_feature(parts: DatasetDict, label: str) -> Any:
    """What the data says about the entries of the lists of labels."""
    return getattr(parts[TRAIN].features[label], "feature", None)


def word_classes(parts: DatasetDict, label: str) -> list[str]:
    """The classes of words: as declared, or all that occur in the training data, sorted."""
    feature = item_feature(parts, label)
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    found = [sorted({str(v) for row in part[label] for v in row}) for part in parts.values()]
    unknown = {name for names in found[1:] for name in names} - {*found[0]}
    if unknown:
        raise ValueError(f"column '{label}' has labels that the training data does not have: {sorted(unknown)}")
    return found[0]


def require_one_label_a_word(words: Sequence[str], labels: Sequence[Any]) -> None:
    """Refuse a row whose labels cannot be those of its words.

    Raises:
        ValueError: there are fewer or more of them.
    """
    if len(words) != len(labels):
        start = f"{' '.join(words[:5])}{' ...' * (len(words) > 5)}"
        raise ValueError(f"the row '{start}' has {len(words)} words and {len(labels)} labels: give one label a word.")


def token_labels(word_ids: Sequence[int | None], labels: Sequence[int], every: bool) -> list[int]:
    """The label of each token: its word's for the first token of a word, or for every one; else ignored."""
    before = [None, *word_ids][:-1]  # an empty text has no tokens
    return [
        metrics.IGNORED if word is None or (word == last and not every) else labels[word]
        for word, last in zip(word_ids, before, strict=True)
    ]


if __name__ == "__main__":
    main()
