"""Load a model, its data and a collator by the names on a command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from ..data.checks import require_classes, require_numbers, require_texts, require_values
from ..data.columns import (
    image_columns,
    is_text,
    label_columns,
    other_text_columns,
    usual_text_columns,
)
from ..data.errors import DataError, named_source
from ..data.folders import read_folder
from ..data.images import as_images, require_images
from ..data.labels import number_of_label
from ..data.splits import TRAIN
from ..data.tables import read_table
from ..data.text_length import longest_text
from ..inputs.text import LONGEST_PATH, LONGEST_VALUE, first_line, one_line, quote
from .model_config import load_config, model_class_name

_WHOLE_TYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


class SourceError(ValueError):
    """A model or data that cannot be used; the message says why, in a sentence."""


@dataclass(frozen=True)
class Source:
    """A model and the data to measure it on.

    Attributes:
        model: the model.
        items: the data set, with the user's own columns.
        collate_fn: makes a batch of items.
        split: name of the split.
        columns: the columns in use, by their role.
        notes: remarks that a reader of the numbers needs.
    """

    model: nn.Module
    items: Any
    collate_fn: Callable[[list[Any]], Any]
    split: str
    columns: dict[str, str]
    notes: tuple[str, ...]


def load_source(
    model: str,
    dataset: str,
    *,
    config: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    items: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Source:
    """Load a model and its data.

    Args:
        model: a folder with a saved model, or a model on the Hub.
        dataset: a data set on the Hub; a file (parquet, csv, tsv, json, jsonl); a folder of such files, of images in a
            folder a class, or one that ``Dataset.save_to_disk`` wrote.
        config: name of the data set's configuration.
        split: name of the split; by default the only one, or ``"train"``.
        text_column: one column, or two separated by a comma; guessed by default.
        image_column: guessed by default.
        label_column: guessed by default.
        items: number of items, selected at random; None: all.
        max_length: tokens after which a text is cut.
        seed: seed of the selection.
        trust_remote_code: run code that is saved with the model.

    Raises:
        SourceError: something cannot be found, read or guessed, or an option does not apply to this model and data.
    """
    if max_length is not None and max_length < 1:
        raise SourceError(f"--max-length {max_length}: give a whole number of at least 1, or leave it out.")
    network, notes = _load_model(model, trust_remote_code)
    files = _ModelFiles(model, trust_remote_code)
    with named_source(lambda split: f"data {quote(dataset, LONGEST_PATH)}", SourceError):
        data, split = _choose_split(_load_data(dataset, config), split)
        if len(data) == 0:
            raise DataError(f"split {quote(split)} is empty: there is no item to measure.")
        if items is not None and items < len(data):
            data = data.shuffle(seed=seed).select(range(items))
            notes = [*notes, f"A random selection of {items} items (seed {seed})."]
        main_input = getattr(network, "main_input_name", "input_ids")
        text_options = {"--text-column": text_column, "--max-length": max_length}
        image_options = {"--image-column": image_column}
        if main_input in data.column_names and not is_text(data.features[main_input]):
            _refuse_options(
                {**text_options, **image_options}, f"the data is prepared for the model already (column '{main_input}')"
            )
            collate_fn, columns = _prepared_collator(files, network, data, main_input, label_column)
        elif main_input == "pixel_values":
            _refuse_options(text_options, f"a {type(network).__name__} takes images")
            image = _choose_column(data, image_column, "--image-column", image_columns(data.features))
            require_values(data, image)
            data = as_images(data, image)
            require_images(data, image)
            collate_fn, columns = _image_collator(files, network, data, image, label_column)
        elif main_input == "input_ids":
            _refuse_options(image_options, f"a {type(network).__name__} takes texts")
            collate_fn, columns = _text_collator(files, network, data, text_column, label_column, max_length)
        else:
            raise SourceError(
                f"a {type(network).__name__} takes '{main_input}', which the data does not have. "
                f"{_list_columns(data)}. "
                "Prepare the data with that column, or call hf_fam.measure_relative_flatness in Python."
            )
    return Source(network, data, collate_fn, split, columns, tuple(notes))


def _refuse_options(options: Mapping[str, Any], reason: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise SourceError(
                f"{option} {one_line(str(value), LONGEST_VALUE)} does not apply here: {reason}. Leave it out."
            )


@dataclass(frozen=True)
class _ModelFiles:
    """What is saved beside a model.

    Attributes:
        source: the folder, or the name on the Hub.
        trust_remote_code: run code that is saved there.
    """

    source: str
    trust_remote_code: bool

    def load(self, auto_class: Any, kind: str, **options: Any) -> Any:
        """Return the tokenizer or the image processor."""
        try:
            return auto_class.from_pretrained(self.source, trust_remote_code=self.trust_remote_code, **options)
        except Exception as error:  # of many kinds, of broken files
            name = quote(self.source, LONGEST_PATH)
            raise SourceError(f"{name} has no {kind} that can be loaded: {first_line(error)}") from error


def _load_model(source: str, trust_remote_code: bool) -> tuple[nn.Module, list[str]]:
    config = load_config(source, {"trust_remote_code": trust_remote_code})
    name = model_class_name(source, config, None)
    options = {"trust_remote_code": trust_remote_code} if name.startswith("Auto") else {}
    try:
        model, info = getattr(transformers, name).from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # of many kinds, of broken files
        raise SourceError(
            f"the weights of {quote(source, LONGEST_PATH)} cannot be loaded: {first_line(error)}"
        ) from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        return model, [f"Not in the checkpoint, and so random: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}."]
    return model, []


def _load_data(source: str, config: str | None) -> Any:
    if os.path.isdir(source):
        return read_folder(source)
    if os.path.exists(source):
        return {TRAIN: read_table(source)}
    import datasets

    try:
        return datasets.load_dataset(source, config)
    except Exception as error:  # of many kinds, from an unreachable Hub to a broken archive
        reason = first_line(error.__cause__ or error)
        raise DataError(f"it is no file or folder here, and cannot be loaded from the Hub: {reason}") from error


def _choose_split(data: Any, split: str | None) -> tuple[Any, str]:
    if not isinstance(data, Mapping):
        if split not in (None, str(data.split)):
            raise SourceError(f"the data has no splits: leave out --split {quote(split)}.")
        return data, str(data.split or "all")
    names = list(data)
    chosen: str = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"there is no split {quote(split)}" if split else "the data has several splits and none is 'train'"
        raise SourceError(f"{problem}: choose --split {' | '.join(map(quote, names))}.")
    return data[chosen], chosen


def _prepared_collator(
    files: _ModelFiles, model: nn.Module, data: Any, main_input: str, column: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    """Return a collator and columns for data that is prepared for the model."""
    label = _label_column(model, data, column)
    number = _label_to_number(model, data, label, is_prepared=True)

    def collate(items: list[Any]) -> Any:
        inputs = [{k: v for k, v in item.items() if k != label} for item in items]
        labels = torch.as_tensor([number(item[label]) for item in items])
        if main_input == "input_ids" and len({len(item[main_input]) for item in items}) > 1:
            return {**_tokenizer(files).pad(inputs, return_tensors="pt"), "labels": labels}
        return {**transformers.default_data_collator(inputs), "labels": labels}

    return collate, {"input": main_input, "label": label}


def _image_collator(
    files: _ModelFiles, model: nn.Module, data: Any, image: str, label: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    label_column = _label_column(model, data, label)
    processor = files.load(transformers.AutoImageProcessor, "image processor", backend="pil")
    number = _label_to_number(model, data, label_column)

    def collate(items: list[Any]) -> Any:
        pictures = [item[image].convert("RGB") for item in items]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.as_tensor([number(item[label_column]) for item in items])}

    return collate, {"image": image, "label": label_column}


def _text_collator(
    files: _ModelFiles, model: nn.Module, data: Any, column: str | None, label: str | None, max_length: int | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    if column is not None:
        names = [_choose_column(data, name.strip(), "--text-column", ()) for name in column.split(",")]
    else:
        usual = usual_text_columns(name for name, feature in data.features.items() if is_text(feature))
        names = [*usual] or [_choose_column(data, None, "--text-column", other_text_columns(data.features))]
    for name in names:
        require_texts(data, name)
    tokenizer = _tokenizer(files)
    positions = longest_text(model, tokenizer)
    if max_length is not None and positions and max_length > positions:
        raise SourceError(f"--max-length {max_length}: the model has {positions} positions. Give at most that number.")
    length = max_length or min(positions or 512, 512)
    class_name = type(model).__name__

    def tokenized(items: list[Any]) -> Any:
        columns = [[str(item[name]) for item in items] for name in names]
        return tokenizer(*columns, truncation=True, max_length=length, padding=True, return_tensors="pt")

    if "ForCausalLM" in class_name or "LMHeadModel" in class_name:
        _refuse_options({"--label-column": label}, f"the labels of a {class_name} are the tokens of its texts")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        def collate_language(items: list[Any]) -> Any:
            batch = tokenized(items)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

        return collate_language, {"text": ", ".join(names)}
    if "ForSequenceClassification" not in class_name:
        raise SourceError(
            f"texts can be measured for sequence classification and causal language models, and this is a "
            f"{class_name}: give tokenized data (columns 'input_ids' and 'labels'), or measure in Python."
        )
    label_column = _label_column(model, data, label)
    number = _label_to_number(model, data, label_column)

    def collate(items: list[Any]) -> Any:
        return {**tokenized(items), "labels": torch.as_tensor([number(item[label_column]) for item in items])}

    return collate, {"text": ", ".join(names), "label": label_column}


def _tokenizer(files: _ModelFiles) -> Any:
    return files.load(transformers.AutoTokenizer, "tokenizer")


def _choose_column(data: Any, column: str | None, option: str, guesses: Sequence[str]) -> str:
    if column:
        if column not in data.column_names:
            raise DataError(f"{option}: the data has no column {quote(column)}: {_list_columns(data)}.")
        return column
    for guess in guesses:
        if guess in data.column_names:
            return guess
    raise DataError(f"which column to use cannot be guessed: give {option}. {_list_columns(data)}.")


def _label_column(model: nn.Module, data: Any, given: str | None) -> str:
    column = _choose_column(data, given, "--label-column", label_columns(data.features))
    require_values(data, column)
    return column


def _label_to_number(model: Any, data: Any, column: str, is_prepared: bool = False) -> Callable[[Any], Any]:
    """Return a function from a label as the data has it to the model's number of the class.

    Prepared data may have a label for every token.
    """
    feature = data.features[column]
    is_regression = model.config.num_labels == 1 or getattr(model.config, "problem_type", None) == "regression"
    if is_regression and hasattr(feature, "dtype"):
        require_numbers(data, column)
        return float
    if is_prepared and not is_text(feature):
        return lambda label: label
    if not is_text(feature) and getattr(feature, "dtype", None) not in _WHOLE_TYPES:
        if getattr(model.config, "problem_type", None) != "multi_label_classification":
            require_classes(data, column)
        return lambda label: label
    return number_of_label(model.config.label2id or {}, data, column)


def _list_columns(data: Any) -> str:
    return f"The columns are {quote(data.column_names, 120).strip('[]')}"
