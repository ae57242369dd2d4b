"""From the names on a command line to a model, its data and what turns items into batches."""

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
from .model_config import class_name, load_config


class SourceError(ValueError):
    """A model or data that cannot be used; the message says why, in a sentence."""


@dataclass(frozen=True)
class Source:
    """What is measured.

    Attributes:
        model: the model.
        items: the data set, with items as the user has them.
        collate_fn: makes batches of items.
        split: which part of the data it is.
        columns: which columns are used, by their role.
        notes: what has to be known to read the numbers.
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
        split: which part; by default the only one, or ``"train"``.
        text_column: one column, or two separated by a comma; guessed by default.
        image_column: guessed by default.
        label_column: guessed by default.
        items: a random selection of that many.
        max_length: of a text, in tokens; longer ones are cut off.
        seed: of the selection.

    Raises:
        SourceError: something cannot be found, read or guessed; an option has no use for this model and data.
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
    main = getattr(network, "main_input_name", "input_ids")
    of_texts = {"--text-column": text_column, "--max-length": max_length}
    of_images = {"--image-column": image_column}
    if main in data.column_names:
        _refuse({**of_texts, **of_images}, f"the data is prepared for the model already (column '{main}')")
        collate_fn, columns = _ready_made(model, network, data, main, label_column)
    elif main == "pixel_values":
        _refuse(of_texts, f"a {type(network).__name__} takes images")
        data, image = _with_images(data, image_column)
        collate_fn, columns = _images(model, network, data, image, label_column)
    elif main == "input_ids":
        _refuse(of_images, f"a {type(network).__name__} takes texts")
        collate_fn, columns = _texts(model, network, data, text_column, label_column, max_length)
    else:
        raise SourceError(
            f"a {type(network).__name__} takes '{main}', which the data does not have: {_listed(data)}. Prepare the "
            "data with that column, or call hf_fam.measure_relative_flatness in Python."
        )
    return Source(network, data, collate_fn, split, columns, tuple(notes))


def _refuse(options: Mapping[str, Any], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise SourceError(f"{option} {value} has no use: {why}. Leave it out.")


def _load_model(source: str) -> tuple[nn.Module, list[str]]:
    config = load_config(source, {})
    name = class_name(source, config, None)
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
            builder, options = _local(path)
            return datasets.load_dataset(builder, **options)
        return datasets.load_dataset(source, config)
    except SourceError:
        raise
    except Exception as error:  # of many kinds, from a missing file to a broken archive
        where = "cannot be read" if path.exists() else "is no file or folder here, and cannot be loaded from the Hub"
        raise SourceError(f"data '{source}' {where}: {_first_line(error)}") from error


def _local(path: Path) -> tuple[str, dict[str, Any]]:
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
            raise SourceError(f"the data has no splits, so --split {split} means nothing.")
        return data, str(data.split or "all")
    names = list(data)
    chosen: str = split or ("train" if "train" in names else names[0] if len(names) == 1 else "")
    if chosen not in names:
        problem = f"there is no split '{split}'" if split else "the data has several splits and none is 'train'"
        raise SourceError(f"{problem}: choose --split {' | '.join(names)}.")
    return data[chosen], chosen


def _ready_made(
    source: str, model: nn.Module, data: Any, main: str, column: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    """Data that was prepared for the model already."""
    label = _label(model, data, column)
    number = _numbers(model, data, label)

    def collate(items: list[Any]) -> Any:
        inputs = [{k: v for k, v in item.items() if k != label} for item in items]
        labels = torch.as_tensor([number(item[label]) for item in items])
        if main == "input_ids" and len({len(item[main]) for item in items}) > 1:
            return {**_tokenizer(source).pad(inputs, return_tensors="pt"), "labels": labels}
        return {**transformers.default_data_collator(inputs), "labels": labels}

    return collate, {"input": main, "label": label}


def _with_images(data: Any, column: str | None) -> tuple[Any, str]:
    import datasets

    image = _column(data, column, "--image-column", image_columns(data.features))
    if isinstance(data.features[image], datasets.Image):
        return data, image
    try:
        data = data.cast_column(image, datasets.Image())
        data[0]
    except Exception as error:  # of pyarrow, datasets or Pillow
        raise SourceError(f"column '{image}' contains no images: {_first_line(error)}") from error
    return data, image


def _images(
    source: str, model: nn.Module, data: Any, image: str, label: str | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    of_label = _label(model, data, label)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"'{source}' has no image processor: {_first_line(error)}") from error
    number = _numbers(model, data, of_label)

    def collate(items: list[Any]) -> Any:
        pictures = [item[image].convert("RGB") for item in items]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": torch.as_tensor([number(item[of_label]) for item in items])}

    return collate, {"image": image, "label": of_label}


def _texts(
    source: str, model: nn.Module, data: Any, column: str | None, label: str | None, max_length: int | None
) -> tuple[Callable[[list[Any]], Any], dict[str, str]]:
    if column is not None:
        names = [_column(data, name.strip(), "--text-column", ()) for name in column.split(",")]
    else:
        usual = usual_text_columns(name for name, feature in data.features.items() if is_text(feature))
        names = [*usual] or [_column(data, None, "--text-column", other_text_columns(data.features))]
    for name in names:
        _require_values(data, name)
    tokenizer = _tokenizer(source)
    positions = getattr(model.config, "max_position_embeddings", None)
    if max_length is not None and positions and max_length > positions:
        raise SourceError(f"--max-length {max_length}: the model has {positions} positions. Give at most so many.")
    limit = max_length or min(tokenizer.model_max_length, positions or 512, 512)
    kind = type(model).__name__

    def tokenized(items: list[Any]) -> Any:
        columns = [[str(item[name]) for item in items] for name in names]
        return tokenizer(*columns, truncation=True, max_length=limit, padding=True, return_tensors="pt")

    if "ForCausalLM" in kind or "LMHeadModel" in kind:
        _refuse({"--label-column": label}, f"the labels of a {kind} are the tokens of its texts")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        def collate_language(items: list[Any]) -> Any:
            batch = tokenized(items)
            return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

        return collate_language, {"text": ", ".join(names)}
    if "ForSequenceClassification" not in kind:
        raise SourceError(
            f"texts can be measured for sequence classification and causal language models, and this is a {kind}: give "
            "data that is tokenized already (columns 'input_ids' and 'labels'), or measure in Python."
        )
    of_label = _label(model, data, label)
    number = _numbers(model, data, of_label)

    def collate(items: list[Any]) -> Any:
        return {**tokenized(items), "labels": torch.as_tensor([number(item[of_label]) for item in items])}

    return collate, {"text": ", ".join(names), "label": of_label}


def _tokenizer(source: str) -> Any:
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise SourceError(f"'{source}' has no tokenizer that can be loaded: {_first_line(error)}") from error


def _column(data: Any, given: str | None, option: str, guesses: Sequence[str]) -> str:
    if given:
        if given not in data.column_names:
            raise SourceError(f"the data has no column '{given}': {_listed(data)}.")
        return given
    for guess in guesses:
        if guess in data.column_names:
            return guess
    raise SourceError(
        f"which column to use cannot be guessed: give {option}. {_listed(data)}.".replace(": The", ": the")
    )


def _label(model: nn.Module, data: Any, given: str | None) -> str:
    column = _column(data, given, "--label-column", label_columns(data.features))
    _require_values(data, column)
    return column


def _require_values(data: Any, column: str) -> None:
    row = first_empty_row(data, column)
    if row is not None:
        raise SourceError(f"column '{column}' is empty in row {row}: fill it, or remove the row.")


def _numbers(model: Any, data: Any, column: str) -> Callable[[Any], float | int]:
    """From a label as the data has it to the model's number of the class."""
    if not is_text(data.features[column]):
        return lambda label: label
    known = {str(name): int(k) for name, k in (model.config.label2id or {}).items()}

    def number(label: Any) -> int:
        if label not in known:
            raise SourceError(
                f"label {label!r} in column '{column}' is none of the model's classes ({', '.join(list(known)[:8])}"
                f"{' ...' if len(known) > 8 else ''})."
            )
        return known[label]

    return number


def _listed(data: Any) -> str:
    return f"The columns are {', '.join(map(repr, data.column_names))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
