"""Fine-tune a model that classifies images: CIFAR, SVHN or FashionMNIST by name, a folder of images, or tables."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from datasets import DatasetDict
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..data.checks import require_classes, require_values
from ..data.columns import image_columns
from ..data.errors import DataError, named_source
from ..data.images import as_images, read_image_folder, require_images
from ..data.splits import TEST, TRAIN, VALIDATION
from ..inputs.text import listed, quote
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments
from .common.augmentation import augment, parse_augmentation
from .common.classes import (
    class_names,
    class_number,
    classes_of_rows,
    drop_unknown_labels,
    in_order_of_model,
    refuse_unknown_classes,
)
from .common.data import (
    check_labels,
    drop_missing,
    label_column,
    load_splits,
    read_split,
    require_column,
    require_column_of_split,
)
from .common.metrics import CLASSIFICATION_METRICS, classification_metrics
from .common.models import load_classifier, load_preprocessing
from .common.parsing import parse
from .common.run import Run
from .common.selection import select_samples
from .common.summary import summarize
from .common.training import finetune, prepare_run

# Data sets with a short name: name on the Hub, configuration, column of the images, column of the labels.
HUB_DATASETS = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "img", "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label"),
}
# Other names of the same data sets.
HUB_DATASETS |= {entry[0]: entry for entry in HUB_DATASETS.values()}
HUB_DATASETS |= {"fashion-mnist": HUB_DATASETS["fashion_mnist"]}


@dataclass
class ImageArguments(DataArguments):
    """Images and their classes."""

    train_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Training data: a folder with one folder of images for each class."}
    )
    validation_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Validation data, in folders like those of train_dir."}
    )
    test_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Test data for --do_predict, in folders like those of train_dir."}
    )
    image_column: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the images. By default a column of images, or a usual name."}
    )
    label_column: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the classes. By default label, or another usual name."}
    )
    image_processor_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Image processor name or path. Defaults to the model's own."}
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "Random changes of training images: none, or some of flip, crop and cutout, joined by _, such as "
            "flip_crop. The crop shifts by up to an eighth; cutout blacks out a square of half the size."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_dir is not None:
            self.dataset_name = self.dataset_config_name = self.validation_split_name = None
        nothing_known = (self.dataset_name, None, None, None)
        name, config_name, image, label = HUB_DATASETS.get(str(self.dataset_name), nothing_known)
        self.dataset_name = name
        self.dataset_config_name = self.dataset_config_name or config_name
        self.image_column = self.image_column or image
        self.label_column = self.label_column or label
        parse_augmentation(self.augmentation)
        for name in ("train_dir", "validation_dir", "test_dir"):
            folder = getattr(self, name)
            if folder is not None and not os.path.isdir(folder):
                raise ValueError(f"{name}={quote(folder)}: there is no such folder.")
        if (self.validation_dir or self.test_dir) and not self.train_dir:
            raise ValueError("validation_dir and test_dir are given without train_dir.")
        if self.train_dir and (self.train_file or self.data_dir):
            raise ValueError("give one of train_dir, data_dir and train_file.")

    def files(self) -> dict[str, str]:
        """Return the folders or files of the splits that are named."""
        folders = {TRAIN: self.train_dir, VALIDATION: self.validation_dir, TEST: self.test_dir}
        named = {split: folder for split, folder in folders.items() if folder is not None}
        return named or super().files()

    def source_of(self, split: str | None) -> str:
        """Return the argument that names the data of a split, with its value."""
        source = super().source_of(split)
        return source.replace("_file=", "_dir=", 1) if self.train_dir else source

    @property
    def title(self) -> str:
        """Name of the data for the model card, without the folders of its path."""
        return Path(self.train_dir).resolve().name if self.train_dir else super().title


ARGUMENT_TYPES = (ModelArguments, ImageArguments, MethodArguments, FAMTrainingArguments)


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
    if model_args.freeze_backbone and parse_augmentation(data.augmentation):
        raise ValueError(
            f"augmentation={data.augmentation!r} with freeze_backbone: features are computed once, so choose none."
        )
    prepare_run(args, model_args)
    args.remove_unused_columns = False  # images become pixels only when a batch is made
    with named_source(data.source_of):
        with args.main_process_first():
            splits = load_images(data, model_args)
        image = image_column(splits, data.image_column)
        label = label_column(splits, data.label_column)
        splits = drop_missing(splits, data, [image], label)
        splits = readable_images(splits, image, is_own=data.dataset_name is None)
        check_labels(splits, label, require_classes)
        refuse_unknown_classes(splits, label, but=[TEST])  # whose folders may be no classes
        splits = select_samples(splits, data, args.seed, label)
        names = in_order_of_model(class_names(splits, label), model_args)
        drop_unknown_labels(splits, label, names)
        guesses = [name for name in ("image_column", "label_column") if not getattr(data, name)]
        columns = {"images": image, "labels": label}
        labels = classes_of_rows(splits[TRAIN], label)
        summary = summarize(data, splits, columns, [] if data.train_dir else guesses, labels)
    processor = load_processor(data, model_args)
    make_model = functools.partial(load_classifier, model_args, AutoModelForImageClassification, names)
    model = make_model()
    feature = splits[TRAIN].features[label]

    def with_pixels(change: Callable[[Image.Image], Image.Image]) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
        def transform(batch: dict[str, list[Any]]) -> dict[str, Any]:
            images = [change(item.convert("RGB")) for item in batch[image]]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            labels = [class_number(names, feature, value) for value in batch.get(label, [])]  # none in some test data
            return {"pixel_values": list(pixels), **({"labels": labels} if labels else {})}

        return transform

    augmented = functools.partial(augment, names=parse_augmentation(data.augmentation))
    splits = DatasetDict(
        {k: split.with_transform(with_pixels(augmented if k == TRAIN else lambda x: x)) for k, split in splits.items()}
    )
    return Run(
        model_args, data, method, args, model, make_model, splits, processor, collate,
        classification_metrics, CLASSIFICATION_METRICS,
        task="image-classification", to_text=lambda row: names[row.argmax()], summary=summary,
    )  # fmt: skip


def load_processor(data: ImageArguments, model_args: ModelArguments) -> Any:
    """Load the image processor; it works with Pillow, so that torchvision is not needed."""
    options = model_args.hub_options()
    if data.image_processor_name:
        source, options = data.image_processor_name, {**options, "revision": "main"}
    else:
        source = model_args.model_name_or_path
    return load_preprocessing(
        model_args,
        AutoImageProcessor,
        AutoModelForImageClassification,
        pretrained_model_name_or_path=source,
        backend="pil",
        **options,
    )


def load_images(data: ImageArguments, model_args: ModelArguments) -> DatasetDict:
    """Load the splits, from the folders of images if they are named.

    Raises:
        DataError: a folder, a file or a split cannot be used.
    """
    if data.train_dir is None:
        return load_splits(data, model_args)
    splits = {
        split: read_split(folder, split, functools.partial(read_image_folder, needs_labels=split != TEST))
        for split, folder in data.files().items()
    }
    return DatasetDict(splits)


def readable_images(splits: DatasetDict, image: str, is_own: bool) -> DatasetDict:
    """Return the splits with a column of images that can all be decoded.

    Args:
        splits: the data.
        image: column of the images, or of their paths.
        is_own: decode every image once, to find broken ones before the training; not for data from the Hub.

    Raises:
        DataError: an image is missing or broken.
    """
    readable: dict[str, Any] = {}
    for name, split in splits.items():
        if name.startswith(TEST):
            require_column_of_split(splits, name, image, "image_column")
        require_values(split, image, name)
        readable[name] = as_images(split, image)
        if is_own:
            require_images(readable[name], image, name)
    return DatasetDict(readable)


def image_column(splits: DatasetDict, name: str | None) -> str:
    """Return the column of the images.

    Args:
        splits: the data.
        name: the column; None for the first one that looks like it.

    Raises:
        ValueError: the training or validation data has no such column.
    """
    guesses = [name] if name else image_columns(splits[TRAIN].features)
    if not guesses:
        present = listed(splits[TRAIN].column_names)
        raise DataError(f"no column of images among {present}: name it with image_column.", TRAIN)
    return require_column(splits, guesses[0], "image_column")


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch of items with pixels and, unless they are missing, labels."""
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch
