"""Load a model, its data and a collator by the names on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from ..data.checks import require_classes, require_numbers, require_texts, require_values, without_missing
from ..data.columns import (
    image_columns,
    is_text,
    label_columns,
    other_text_columns,
    same_column,
    usual_text_columns,
)
from ..data.errors import DataError, named_source
from ..data.images import as_images, require_images
from ..data.labels import number_of_label
from ..data.sources import choose_split, read_source
from ..data.text_length import longest_text, usual_length
from ..inputs.text import LONGEST_PATH, LONGEST_VALUE, did_you_mean, listed, one_line, quote
from .saved_model import ModelFiles, load_saved_model, notes_about_training

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
    encoding: str | None = None,
    drop_missing: bool = False,
    items: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Source:
    """Load a model and its data.

    Args:
        model: a folder with a saved model, or a model on the Hub.
        dataset: a data set on the Hub; a file (parquet, csv, tsv, json, jsonl); or a folder of such files, of images in
            a folder a class, or one that ``Dataset.save_to_disk`` wrote.
        config: name of the data set's configuration.
        split: name of the split; by default the only one, or ``"train"``.
        text_column: one column, or two separated by a comma; guessed by default.
        image_column: guessed by default.
        label_column: guessed by default.
        encoding: encoding of text files; UTF-8 by default.
        drop_missing: leave out rows with an empty place, instead of refusing them.
        items: number of items, selected at random; None: all.
        max_length: tokens after which a text is cut.
        seed: seed of the selection.
        trust_remote_code: run code that is saved with the model.

    Raises:
        SourceError: something cannot be found, read or guessed, or an option does not apply to this model and data.
    """
    if max_length is not None and max_length < 1:
        raise SourceError(f"--max_length {max_length}: give a whole number of at least 1, or leave it out.")
    network, notes = load_saved_model(model, trust_remote_code)
    notes = [*notes, *notes_about_training(model)]
    files = ModelFiles(model, trust_remote_code)
    with named_source(lambda split: f"data {quote(dataset, LONGEST_PATH)}", SourceError):
        data, split = choose_split(read_source(dataset, config, encoding), split)
        main_input = getattr(network, "main_input_name", "input_ids")
        is_prepared = main_input in data.column_names and not is_text(data.features[main_input])
        text_options = {"--text_column": text_column, "--max_length": max_length}
        image_options = {"--image_column": image_column}
        label_options = {"--label_column": label_column}
        name, label = type(network).__name__, None
        if is_prepared:
            reason = f"the data is prepared for the model already (column '{main_input}')"
            _refuse_options({**text_options, **image_options}, reason)
            inputs = [main_input]
        elif main_input == "pixel_values":
            _refuse_options(text_options, f"a {name} takes images")
            inputs = [_choose_column(data, image_column, "--image_column", image_columns(data.features))]
        elif main_input == "input_ids":
            _refuse_options(image_options, f"a {name} takes texts")
            inputs = text_columns(data, text_column)
        else:
            raise SourceError(
                f"a {name} takes '{main_input}', which the data does not have: {_list_columns(data)}. "
                "Prepare the data with that column, or call hf_fam.measure_relative_flatness in Python."
            )
        if main_input == "input_ids" and not is_prepared and is_language_model(network):
            _refuse_options(label_options, f"the labels of a {name} are the tokens of its texts")
        elif is_prepared or main_input == "pixel_values" or "ForSequenceClassification" in name:
            label = _choose_column(data, label_column, "--label_column", label_columns(data.features))
        if drop_missing:
            data, dropped = without_missing(data, [*inputs, *([] if label is None else [label])])
            notes = [*notes, *([f"{dropped} rows with an empty place were left out."] if dropped else [])]
        if items is not None and items < len(data):
            data = data.shuffle(seed=seed).select(range(items))
            notes = [*notes, f"A random selection of {items} items (seed {seed})."]
        if label is not None:
            require_values(data, label)
        if is_prepared:
            collate_fn, columns = _prepared_collator(files, network, data, main_input, str(label))
        elif main_input == "pixel_values":
            require_values(data, inputs[0])
            data = as_images(data, inputs[0])
            require_images(data, inputs[0])
            collate_fn, columns = _image_collator(files, network, data, inputs[0], str(label))
        else:
            collate_fn, columns = _text_collator(files, network, data, inputs, label, max_length)
    return Source(network, data, collate_fn, split, columns, tuple(notes))


def _refuse_options(options: Mapping[str, Any], reason: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise SourceError(
                f"{option} {one_line(str(value), LONGEST_VALUE)} does not apply here: {reason}. Leave it out."
            )


def _prepared_collator(
    files: ModelFiles, model: nn.Module, data: Any, main_input: str, label: str
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    """Return a collator and columns for data that is prepared for the model."""
    number = _label_to_number(model, data, label, is_prepared=True)

    def collate(items: list[Any]) -> Any:
        inputs = [{k: v for k, v in item.items() if k != label} for item in items]
        labels = torch.as_tensor([number(item[label]) for item in items])
        if main_input == "input_ids" and len({len(item[main_input]) for item in items}) > 1:
            return {**_tokenizer(files).pad(inputs, return_tensors="pt"), "labels": labels}
        return {**transformers.default_data_collator(inputs), "labels": labels}

    return collate, {"input": main_input, "label": label}


def _image_collator(
    files: ModelFiles, model: nn.Module, data: Any, image: str, label: str
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    processor = files.load(transformers.AutoImageProcessor, "image processor", backend="pil")
    number = _label_to_number(model, data, label)

    def collate(items: list[Any]) -> Any:
        pictures = [item[image].convert("RGB") for item in items]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.as_tensor([number(item[label]) for item in items])}

    return collate, {"image": image, "label": label}


def _text_collator(
    files: ModelFiles, model: nn.Module, data: Any, names: Sequence[str], label: str | None, max_length: int | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    for name in names:
        require_texts(data, name)
    tokenizer = _tokenizer(files)
    length = length_of_texts(model, tokenizer, max_length)
    class_name = type(model).__name__

    def tokenized(items: list[Any]) -> Any:
        columns = [[str(item[name]) for item in items] for name in names]
        return tokenizer(*columns, truncation=True, max_length=length, padding=True, return_tensors="pt")

    if is_language_model(model):
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        def collate_language(items: list[Any]) -> Any:
            batch = tokenized(items)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

        return collate_language, {"text": ", ".join(names)}
    if label is None:
        raise SourceError(
            f"texts can be measured for sequence classification and causal language models, and this is a "
            f"{class_name}. Give tokenized data with columns 'input_ids' and 'labels', or measure in Python."
        )
    number = _label_to_number(model, data, label)

    def collate(items: list[Any]) -> Any:
        return {**tokenized(items), "labels": torch.as_tensor([number(item[label]) for item in items])}

    return collate, {"text": ", ".join(names), "label": label}


def text_columns(data: Any, given: str | None) -> list[str]:
    """Return the one or two columns of the texts.

    Args:
        data: a `datasets.Dataset`.
        given: one name, or two separated by a comma; None to guess.

    Raises:
        DataError: a column is missing, or none can be guessed.
    """
    if given is not None:
        return [_choose_column(data, name.strip(), "--text_column", ()) for name in given.split(",")]
    import datasets

    usual = usual_text_columns(name for name, feature in data.features.items() if is_text(feature))
    others = other_text_columns(data.features)
    images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if images and not usual and not others:
        raise DataError(f"the model takes texts, and the data has images (column {quote(images[0])}).")
    return [*usual] or [_choose_column(data, None, "--text_column", others)]


def length_of_texts(model: nn.Module, tokenizer: Any, max_length: int | None) -> int:
    """Return the number of tokens after which texts are cut.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        max_length: the number that was asked for; by default that of the training, at most 512.

    Raises:
        SourceError: the model has fewer positions.
    """
    positions = longest_text(model)
    if max_length is not None and positions and max_length > positions:
        raise SourceError(f"--max_length {max_length}: the model has {positions} positions. Give at most that number.")
    return max_length or usual_length(model, tokenizer)


def is_language_model(model: nn.Module) -> bool:
    """Return True for a causal language model, by the name of its class."""
    return any(word in type(model).__name__ for word in ("ForCausalLM", "LMHeadModel"))


def _tokenizer(files: ModelFiles) -> Any:
    return files.load(transformers.AutoTokenizer, "tokenizer")


def _choose_column(data: Any, column: str | None, option: str, guesses: Sequence[str]) -> str:
    if column:
        name = same_column(column, data.column_names)
        if name is None:
            near = did_you_mean(column, data.column_names)
            raise DataError(
                f"{option}: the data has no column {quote(column)}{near or ':'} {_list_columns(data, near)}."
            )
        return name
    for guess in guesses:
        if guess in data.column_names:
            return guess
    raise DataError(f"which column to use cannot be guessed: give {option}; {_list_columns(data)}.")


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


def _list_columns(data: Any, is_sentence: object = False) -> str:
    return f"{'T' if is_sentence else 't'}he columns are {listed(data.column_names)}"
