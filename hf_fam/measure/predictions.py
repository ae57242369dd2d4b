"""Predictions of a saved model for the texts, words or images of a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..data.checks import require_classes, require_texts, require_values, without_missing
from ..data.columns import image_columns, is_text, label_columns, same_column
from ..data.errors import DataError, named_source
from ..data.images import as_images, image_files, is_image, require_images
from ..data.labels import number_of_label
from ..data.sources import choose_split, read_source
from ..data.splits import TEST, TRAIN
from ..data.text_files import read_lines
from ..inputs.text import LONGEST_PATH, listed, quote, with_article
from .saved_model import ModelFiles, load_saved_model
from .sources import length_of_texts, text_columns

_TEXTS, _WORDS, _IMAGES = "ForSequenceClassification", "ForTokenClassification", "ForImageClassification"
# Names of a column with lists of words.
_WORD_COLUMNS = ("tokens", "words")
# From this probability on, a class of a model with several classes an item counts.
_HALF = 0.5


class PredictionError(ValueError):
    """A model or inputs that cannot be used; the message says why, in a sentence."""


@dataclass(frozen=True)
class Options:
    """How the inputs are read and the model is called.

    Attributes:
        split: name of the split; by default the only one, or test, or train.
        text_column: column of the texts or of lists of words, or two columns separated by a comma; guessed by default.
        image_column: column of the images; guessed by default.
        encoding: encoding of text files; UTF-8 by default.
        drop_missing: leave out rows with an empty place, instead of refusing them.
        batch_size: inputs that the model takes at a time.
        max_length: tokens after which a text is cut; by default as in the training, at most 512.
        device: where the model runs.
        trust_remote_code: run code that is saved with the model.
    """

    split: str | None = None
    text_column: str | None = None
    image_column: str | None = None
    encoding: str | None = None
    drop_missing: bool = False
    batch_size: int = 32
    max_length: int | None = None
    device: str = "cpu"
    trust_remote_code: bool = False


class Predictor:
    """Predicts the inputs of a file, a row at a time.

    Args:
        model: a folder with a saved model, or a model on the Hub.
        source: a file, a folder, or a data set on the Hub. For texts also a txt file with one text a line. For images
            also an image, a folder of images at any depth, or a txt file with one path a line.
        options: how they are read.

    Attributes:
        header: names of the columns of the rows.
        cut: number of texts so far that were cut.
        length: tokens after which a text is cut; None for images.
        columns: the columns of the inputs.
        predicted: number of inputs so far; lists of words count once.
        right: how many of them are of the class that the data names; None if it has no labels of the model.

    Raises:
        ValueError: the model or the inputs cannot be used; the message says why.
    """

    def __init__(self, model: str, source: str, options: Options) -> None:
        self._options = options
        self._files = ModelFiles(model, options.trust_remote_code)
        self._model, missing = load_saved_model(model, options.trust_remote_code)
        self._kind = _kind(self._model)
        if missing:
            raise PredictionError(f"the head of {quote(model, LONGEST_PATH)} is not trained: `hf-fam train` does that.")
        self.cut = 0
        self.length: int | None = None
        with named_source(lambda split: f"data {quote(source, LONGEST_PATH)}", PredictionError):
            self._data, self._columns = self._read(source)
        self._prepare = self._processor() if self._kind == _IMAGES else self._tokenizer()
        self._model.to(options.device).eval()
        config: Any = self._model.config
        self._is_number = config.num_labels == 1 or config.problem_type == "regression"
        self._is_multiple = config.problem_type == "multi_label_classification"
        self._names = [str(config.id2label[k]) for k in range(config.num_labels)]
        self.columns, self.predicted = tuple(self._columns), 0
        self._labels = self._labels_of_model()
        self.right = None if self._labels is None else 0
        inputs = ["row", "input"] if self._kind == _WORDS else ["input", "second_input"][: len(self._columns)]
        if self._is_number:
            self.header = [*inputs, *(["prediction"] if config.num_labels == 1 else self._names)]
        else:
            self.header = [*inputs, "class", *(f"probability_{name}" for name in self._names)]

    def rows(self) -> Iterator[list[Any]]:
        """Return an iterator over the rows: the input, and its class and probabilities, or its number."""
        size = self._options.batch_size
        for start in range(0, len(self._data), size):
            items = [self._data[k] for k in range(start, min(start + size, len(self._data)))]
            batch, places = self._prepare(items)
            self.predicted += len(items)
            with torch.inference_mode():
                logits = self._model(**batch.to(self._options.device)).logits.float().cpu()
            if self._kind == _WORDS:
                yield from self._word_rows(start, items, logits, places)
                continue
            if self._labels is not None and self.right is not None:
                self.right += int((logits.argmax(-1) == torch.tensor(self._labels[start : start + size])).sum())
            for item, row in zip(items, logits, strict=True):
                yield [*map(self._shown, (item[c] for c in self._columns)), *self._output(row)]

    def _labels_of_model(self) -> list[int] | None:
        """Return the class of each input, if a column of labels has classes of the model and nothing else."""
        data = self._data.table if self._kind == _IMAGES else self._data
        column = next((name for name in label_columns(data.features) if name not in self._columns), None)
        if column is None or self._kind == _WORDS or self._is_number or self._is_multiple:
            return None
        config: Any = self._model.config
        try:
            require_classes(data, column)
            number = number_of_label(config.label2id or {}, data, column)
        except DataError:  # another column than that of the training
            return None
        labels = [int(number(value)) for value in data[column]]
        return labels if labels and all(0 <= label < len(self._names) for label in labels) else None

    def _word_rows(
        self, start: int, items: Sequence[Any], logits: Tensor, places: Sequence[dict[int, int]]
    ) -> Iterator[list[Any]]:
        for k, item in enumerate(items):
            self.cut += len(places[k]) < len(_words(item[self._columns[0]]))
            for number, word in enumerate(_words(item[self._columns[0]])):
                place = places[k].get(number)
                output = [""] * (1 + len(self._names)) if place is None else self._output(logits[k, place])
                yield [start + k + 1, word, *output]

    def _output(self, logits: Tensor) -> list[Any]:
        """Return the cells of one input behind the input itself."""
        if self._is_number:
            return [_number(value) for value in logits.tolist()]
        probabilities = (logits.sigmoid() if self._is_multiple else logits.softmax(-1)).tolist()
        if self._is_multiple:
            name = "|".join(n for n, p in zip(self._names, probabilities, strict=True) if p >= _HALF)
        else:
            name = self._names[int(logits.argmax())]
        return [name, *map(_number, probabilities)]

    def _shown(self, value: Any) -> Any:
        """Return an input as it is written: a text, or the name of an image's file."""
        return value if self._kind != _IMAGES else value[0]

    def _read(self, source: str) -> tuple[Any, list[str]]:
        """Return the inputs, and the columns in use."""
        options = self._options
        if self._kind == _IMAGES:
            return self._read_images(source)
        if source.lower().endswith(".txt") and os.path.isfile(source):
            data: Any = _from_lines("text", read_lines(Path(source), options.encoding))
        else:
            read = read_source(source, encoding=options.encoding)
            data, _ = choose_split(read, options.split, (TEST, TRAIN))
        if self._kind == _WORDS and options.text_column is None:
            found = [same_column(name, data.column_names) for name in _WORD_COLUMNS]
            columns = [name for name in found if name is not None][:1] or text_columns(data, None)[:1]
        else:
            columns = text_columns(data, options.text_column)
        if len(columns) > (1 if self._kind == _WORDS else 2):
            raise PredictionError(f"--text_column {quote(options.text_column)}: give one column, or two for pairs.")
        if options.drop_missing:
            data, _ = without_missing(data, columns)
        for name in columns:
            if self._kind == _WORDS and not is_text(data.features[name]):
                require_values(data, name)
            else:
                require_texts(data, name)
        return data, columns

    def _read_images(self, source: str) -> tuple[Any, list[str]]:
        from datasets import Dataset

        options = self._options
        if os.path.isdir(source) and (files := image_files(source)):
            data: Any = Dataset.from_dict({"image": files})
        elif is_image(Path(source)) and os.path.isfile(source):
            data = Dataset.from_dict({"image": [source]})
        elif source.lower().endswith(".txt") and os.path.isfile(source):
            data = _from_lines("image", read_lines(Path(source), options.encoding))
        else:
            read = read_source(source, encoding=options.encoding)
            data, _ = choose_split(read, options.split, (TEST, TRAIN))
        if options.image_column is None:
            column = next(iter(image_columns(data.features)), None)
        else:
            column = same_column(options.image_column, data.column_names)
        if column is None:
            raise DataError(f"no column of images among {listed(data.column_names)}: give --image_column.")
        if options.drop_missing:
            data, _ = without_missing(data, [column])
        require_values(data, column)
        data = as_images(data, column)
        require_images(data, column)
        return _NamedImages(data, column), [column]

    def _processor(self) -> Any:
        processor = self._files.load(transformers.AutoImageProcessor, "image processor", backend="pil")
        column = self._columns[0]

        def prepare(items: Sequence[Any]) -> tuple[Any, Any]:
            return processor(images=[item[column][1] for item in items], return_tensors="pt"), None

        return prepare

    def _tokenizer(self) -> Any:
        tokenizer = self._files.load(transformers.AutoTokenizer, "tokenizer")
        self.length = length = length_of_texts(self._model, tokenizer, self._options.max_length)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        def prepare(items: Sequence[Any]) -> tuple[Any, Any]:
            if self._kind == _WORDS:
                words = [_words(item[self._columns[0]]) for item in items]
                batch = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length, padding=True,
                                  return_tensors="pt")  # fmt: skip
                return batch, [_first_places(batch.word_ids(k)) for k in range(len(items))]
            texts = [[str(item[column]) for item in items] for column in self._columns]
            whole = tokenizer(*texts, truncation=False)["input_ids"]
            self.cut += sum(len(ids) > length for ids in whole)
            return tokenizer(*texts, truncation=True, max_length=length, padding=True, return_tensors="pt"), None

        return prepare


class _NamedImages:
    """Images with the names of their files, or the numbers of their rows, read one at a time."""

    def __init__(self, data: Any, column: str) -> None:
        self.table, self._column = data, column
        self._paths = [image.get("path") for image in data.data.column(column).to_pylist()] if len(data) else []

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = self.table[row][self._column].convert("RGB")
        return {self._column: (self._paths[row] or f"row {row + 1}", image)}


def _kind(model: nn.Module) -> str:
    name = type(model).__name__
    found = next((kind for kind in (_TEXTS, _WORDS, _IMAGES) if kind in name), None)
    if found is None:
        raise PredictionError(
            f"this is {with_article(name)}: predictions are for classification of texts, words and images; use "
            "transformers.pipeline for others."
        )
    return found


def _words(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(word) for word in value]


def _first_places(word_ids: Sequence[int | None]) -> dict[int, int]:
    """Return the place of each word's first token."""
    places: dict[int, int] = {}
    for place, word in enumerate(word_ids):
        if word is not None:
            places.setdefault(word, place)
    return places


def _from_lines(column: str, lines: Sequence[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({column: [*lines]})


def _number(value: float) -> str:
    return f"{value:.6g}"
