"""Fine-tune a model that classifies images: CIFAR, SVHN or FashionMNIST by name, a folder of images, or tables."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from datasets import ClassLabel, DatasetDict, load_dataset
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..measure.columns import image_columns, label_columns
from ..train.training_args import FAMTrainingArguments
from .common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from .common.augmentation import augment, parse_augmentation
from .common.data import (
    TEST,
    TRAIN,
    VALIDATION,
    class_names,
    class_number,
    label_column,
    load_splits,
    require_column,
    select_samples,
)
from .common.metrics import classification_metrics
from .common.models import load_classifier, load_preprocessing
from .common.run import Run
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
    image_column_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the images. By default a column of images, or a usual name."}
    )
    label_column_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the classes. By default label, or another usual name."}
    )
    image_processor_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Image processor name or path. Defaults to the model's own."}
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "none, or some of flip (mirror at random), crop (shift by up to an eighth) and cutout (black out a "
            "square of half the size), joined by _, such as flip_crop."
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
        self.image_column_name = self.image_column_name or image
        self.label_column_name = self.label_column_name or label
        parse_augmentation(self.augmentation)
        for name in ("train_dir", "validation_dir", "test_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"{name}={folder!r}: there is no such folder.")
        if (self.validation_dir or self.test_dir) and not self.train_dir:
            raise ValueError("validation_dir and test_dir are given without train_dir.")
        if self.train_dir and (self.train_file or self.data_dir):
            raise ValueError("give one of train_dir, data_dir and train_file.")

    @property
    def title(self) -> str:
        """Name of the data for the model card, without the folders of its path."""
        return Path(self.train_dir).resolve().name if self.train_dir else super().title


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
    argument_types = (ModelArguments, ImageArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, method, args = parse(argument_types, argv, methods)
    data.is_whole = bool(methods)
    if model_args.freeze_backbone and parse_augmentation(data.augmentation):
        raise ValueError(
            f"augmentation={data.augmentation!r} with freeze_backbone: features are computed once, so choose none."
        )
    prepare_run(args)
    args.remove_unused_columns = False  # images become pixels only when a batch is made
    with args.main_process_first():
        splits, folder_names = load_images(data, model_args, args.seed)
    image = image_column(splits, data.image_column_name)
    label = label_column(splits, data.label_column_name)
    names = folder_names or class_names(splits, label)
    processor = load_processor(data, model_args)
    make_model = functools.partial(load_classifier, model_args, AutoModelForImageClassification, names)
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
        model_args, data, method, args, make_model, splits, processor, collate, classification_metrics,
        task="image-classification", to_text=lambda row: names[row.argmax()],
    )  # fmt: skip


def load_processor(data: ImageArguments, model_args: ModelArguments) -> Any:
    """Load the image processor; it works with Pillow, so that torchvision is not needed."""
    options = model_args.hub_options()
    if data.image_processor_name:
        source, options = data.image_processor_name, {**options, "revision": "main"}
    else:
        source = model_args.model_name_or_path
    return load_preprocessing(
        model_args, AutoImageProcessor, pretrained_model_name_or_path=source, backend="pil", **options
    )


def load_images(data: ImageArguments, model_args: ModelArguments, seed: int) -> tuple[DatasetDict, list[str]]:
    """Load the splits, and the classes if the folders of the images tell them.

    Returns:
        The splits and the classes in order; no classes for data from elsewhere, which declares its own.
    """
    if data.train_dir is None and data.data_dir is None:
        return load_splits(data, model_args, seed), []
    if data.data_dir is not None:
        splits = load_dataset(data.data_dir, cache_dir=model_args.cache_dir)
    else:
        folders = {TRAIN: data.train_dir, VALIDATION: data.validation_dir, TEST: data.test_dir}
        files = {split: str(Path(folder, "**")) for split, folder in folders.items() if folder is not None}
        splits = load_dataset("imagefolder", data_files=files, drop_labels=False, cache_dir=model_args.cache_dir)
    names = folder_classes(splits, data.label_column_name)
    return select_samples(splits, data, seed), names


def folder_classes(splits: DatasetDict, label: str | None) -> list[str]:
    """Return the classes that the training data has images of.

    Labels of the test data are removed if it has other folders: its images are predicted, not measured.

    Args:
        splits: the data; the test split may be changed.
        label: column of the labels; None for the first one that looks like it.

    Raises:
        ValueError: the validation data has other classes.
    """
    if TRAIN not in splits:
        return []  # select_samples says that it is missing
    label = label or next(iter(label_columns(splits[TRAIN].features)), "label")
    feature = splits[TRAIN].features.get(label)
    if not isinstance(feature, ClassLabel):
        return []  # label_column says whether it is missing
    present = {
        name: {feature.int2str(k) for k in split.unique(label)}
        for name, split in splits.items()
        if label in split.features
    }
    unknown = {name: sorted(classes - present[TRAIN]) for name, classes in present.items()}
    if unknown.get(VALIDATION):
        raise ValueError(
            f"the validation folder has classes without training images: {', '.join(unknown[VALIDATION])}."
        )
    if unknown.get(TEST):
        warnings.warn(
            f"the test folder's {', '.join(unknown[TEST])} is no class: its images are predicted, not measured.",
            stacklevel=2,
        )
        splits[TEST] = splits[TEST].remove_columns(label)
    return sorted(present[TRAIN])


def image_column(splits: DatasetDict, name: str | None) -> str:
    """Return the column of the images.

    Args:
        splits: the data.
        name: the column; None for the first one that looks like it.

    Raises:
        ValueError: the training or validation data has no such column.
    """
    guesses = [name] if name else image_columns(splits[TRAIN].features)
    return require_column(splits, guesses[0] if guesses else "image", "image_column_name")


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch of items with pixels and, unless they are missing, labels."""
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch
