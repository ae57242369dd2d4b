"""Load a model, its data and a collator by the names on a command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from .columns import (
    IMAGE_FORMATS,
    TABLE_FORMATS,
    first_empty_row,
    image_columns,
    is_text,
    label_columns,
    other_text_columns,
    table_format,
    usual_text_columns,
)
from .model_config import load_config, model_class_name


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

    Raises:
        SourceError: something cannot be found, read or guessed, or an option does not apply to this model and data.
    """
    if max_length is not None and max_length < 1:
        raise SourceError(f"--max-length {max_length}: give a whole number of at least 1, or leave it out.")
    network, notes = _load_model(model)
    data, split = _choose_split(_load_data(dataset, config), split)
    if len(data) == 0:
        raise SourceError(f"split '{split}' of '{dataset}' is empty: there is no item to measure.")
    if items is not None and items < len(data):
        data = data.shuffle(seed=seed).select(range(items))
        notes = [*notes, f"A random selection of {items} items (seed {seed})."]
    main_input = getattr(network, "main_input_name", "input_ids")
    text_options = {"--text-column": text_column, "--max-length": max_length}
    image_options = {"--image-column": image_column}
    if main_input in data.column_names:
        _refuse_options(
            {**text_options, **image_options}, f"the data is prepared for the model already (column '{main_input}')"
        )
        collate_fn, columns = _prepared_collator(model, network, data, main_input, label_column)
    elif main_input == "pixel_values":
        _refuse_options(text_options, f"a {type(network).__name__} takes images")
        data, image = _decode_images(data, image_column)
        collate_fn, columns = _image_collator(model, network, data, image, label_column)
    elif main_input == "input_ids":
        _refuse_options(image_options, f"a {type(network).__name__} takes texts")
        collate_fn, columns = _text_collator(model, network, data, text_column, label_column, max_length)
    else:
        raise SourceError(
            f"a {type(network).__name__} takes '{main_input}', which the data does not have: {_list_columns(data)}. "
            "Prepare the data with that column, or call hf_fam.measure_relative_flatness in Python."
        )
    return Source(network, data, collate_fn, split, columns, tuple(notes))


def _refuse_options(options: Mapping[str, Any], reason: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{option} {value} does not apply here: {reason}. Leave it out.")


def _load_model(source: str) -> tuple[nn.Module, list[str]]:
    config = load_config(source, {})
    name = model_class_name(source, config, None)
    try:
        model, info = getattr(transformers, name).from_pretrained(source, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"the weights of '{source}' cannot be loaded: {_first_line(error)}") from error
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        return model, [f"Not in the checkpoint, and so random: {', '.join(missing[:4])}{' ...' * (len(missing) > 4)}."]
    return model, []


def _load_data(source: str, config: str | None) -> Any:
    import datasets

    path = Path(source)
    try:
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            return datasets.load_from_disk(source)
        if path.exists():
            builder, options = _local_files(path)
            return datasets.load_dataset(builder, **options)
        return datasets.load_dataset(source, config)
    except SourceError:
        raise
    except Exception as error:  # of many kinds, from a missing file to a broken archive
        problem = "cannot be read" if path.exists() else "is no file or folder here, and cannot be loaded from the Hub"
        raise SourceError(f"data '{source}' {problem}: {_first_line(error)}") from error


def _local_files(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the builder of `datasets` for a file or folder, and its options."""
    if path.is_file():
        known = table_format(path)
        if known is None:
            raise SourceError(
                f"data '{path}' is a {path.suffix or 'file without ending'}: give one of {', '.join(TABLE_FORMATS)}."
            )
        builder, options = known
        return builder, {"data_files": str(path), **options}
    if any(file.suffix.lower() in IMAGE_FORMATS for file in path.rglob("*")):
        return "imagefolder", {"data_dir": str(path)}
    tables = [(file, known) for file in sorted(path.rglob("*")) if (known := table_format(file))]
    if not tables:
        raise SourceError(
            f"folder '{path}' contains no images and none of {', '.join('*' + ending for ending in TABLE_FORMATS)}."
        )
    builder, options = tables[0][1]
    splits: dict[str, list[str]] = {}
    for file, known in tables:
        if known == (builder, options):
            name = next((s for s in ("train", "validation", "test", "dev") if s in file.stem), "train")
            splits.setdefault(name, []).append(str(file))
    return builder, {"data_files": splits, **options}


def _choose_split(data: Any, split: str | None) -> tuple[Any, str]:
    if not isinstance(data, Mapping):
        if split not in (None, str(data.split)):
            raise SourceError(f"the data has no splits: leave out --split {split}.")
        return data, str(data.split or "all")
    names = list(data)
    chosen: str = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"there is no split '{split}'" if split else "the data has several splits and none is 'train'"
        raise SourceError(f"{problem}: choose --split {' | '.join(names)}.")
    return data[chosen], chosen


def _prepared_collator(
    source: str, model: nn.Module, data: Any, main_input: str, column: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    """Return a collator and columns for data that is prepared for the model."""
    label = _label_column(model, data, column)
    number = _label_to_number(model, data, label)

    def collate(items: list[Any]) -> Any:
        inputs = [{k: v for k, v in item.items() if k != label} for item in items]
        labels = torch.as_tensor([number(item[label]) for item in items])
        if main_input == "input_ids" and len({len(item[main_input]) for item in items}) > 1:
            return {**_tokenizer(source).pad(inputs, return_tensors="pt"), "labels": labels}
        return {**transformers.default_data_collator(inputs), "labels": labels}

    return collate, {"input": main_input, "label": label}


def _decode_images(data: Any, column: str | None) -> tuple[Any, str]:
    import datasets

    image = _choose_column(data, column, "--image-column", image_columns(data.features))
    if isinstance(data.features[image], datasets.Image):
        return data, image
    try:
        data = data.cast_column(image, datasets.Image())
        data[0]
    except Exception as error:  # of pyarrow, datasets or Pillow
        raise SourceError(f"column '{image}' contains no images: {_first_line(error)}") from error
    return data, image


def _image_collator(
    source: str, model: nn.Module, data: Any, image: str, label: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    label_column = _label_column(model, data, label)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"'{source}' has no image processor: {_first_line(error)}") from error
    number = _label_to_number(model, data, label_column)

    def collate(items: list[Any]) -> Any:
        pictures = [item[image].convert("RGB") for item in items]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.as_tensor([number(item[label_column]) for item in items])}

    return collate, {"image": image, "label": label_column}


def _text_collator(
    source: str, model: nn.Module, data: Any, column: str | None, label: str | None, max_length: int | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    if column is not None:
        names = [_choose_column(data, name.strip(), "--text-column", ()) for name in column.split(",")]
    else:
        usual = usual_text_columns(name for name, feature in data.features.items() if is_text(feature))
        names = [*usual] or [_choose_column(data, None, "--text-column", other_text_columns(data.features))]
    for name in names:
        _require_values(data, name)
    tokenizer = _tokenizer(source)
    positions = getattr(model.config, "max_position_embeddings", None)
    if max_length is not None and positions and max_length > positions:
        raise SourceError(f"--max-length {max_length}: the model has {positions} positions. Give at most that number.")
    length = max_length or min(tokenizer.model_max_length, positions or 512, 512)
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


def _tokenizer(source: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise SourceError(f"'{source}' has no tokenizer that can be loaded: {_first_line(error)}") from error


def _choose_column(data: Any, column: str | None, option: str, guesses: Sequence[str]) -> str:
    if column:
        if column not in data.column_names:
            raise SourceError(f"the data has no column '{column}': {_list_columns(data)}.")
        return column
    for guess in guesses:
        if guess in data.column_names:
            return guess
    raise SourceError(
        f"which column to use cannot be guessed: give {option}. {_list_columns(data)}.".replace(": The", ": the")
    )


def _label_column(model: nn.Module, data: Any, given: str | None) -> str:
    column = _choose_column(data, given, "--label-column", label_columns(data.features))
    _require_values(data, column)
    return column


def _require_values(data: Any, column: str) -> None:
    row = first_empty_row(data, column)
    if row is not None:
        raise SourceError(f"column '{column}' is empty in row {row}: fill it, or remove the row.")


def _label_to_number(model: Any, data: Any, column: str) -> Callable[[Any], float | int]:
    """From a label as the data has it to the model's number of the class."""
    if not is_text(data.features[column]):
        return lambda label: label
    class_numbers = {str(name): int(k) for name, k in (model.config.label2id or {}).items()}

    def number(label: Any) -> int:
        if label not in class_numbers:
            raise SourceError(
                f"label {label!r} in column '{column}' is not one of the model's classes "
                f"({', '.join(list(class_numbers)[:8])}{' ...' if len(class_numbers) > 8 else ''})."
            )
        return class_numbers[label]

    return number


def _list_columns(data: Any) -> str:
    return f"The columns are {', '.join(map(repr, data.column_names))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
