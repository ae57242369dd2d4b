"""Fine-tune a model that classifies images: CIFAR, SVHN, FashionMNIST by name, any folder of images, or parquet files.

accelerate launch recipes/image_classification/run.py recipes/image_classification/fam.yaml --train_dir my_images
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

sys.path.append(str(Path(__file__).parents[2]))

import torch
from datasets import ClassLabel, DatasetDict, load_dataset
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_fam import FAMTrainingArguments
from recipes.common import metrics
from recipes.common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from recipes.common.data import TEST, TRAIN, VALIDATION, class_names, class_number, cut, load_parts, require_column
from recipes.common.models import load_classifier
from recipes.common.training import Run, begin, finetune
from recipes.image_classification.augmentation import augment, parts_of

# Name on the Hub, configuration, column of the images, column of the labels.
KNOWN = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "img", "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label"),
}
# What else people call them.
KNOWN |= {known[0]: known for known in KNOWN.values()} | {"fashion-mnist": KNOWN["fashion_mnist"]}


@dataclass
class ImageArguments(DataArguments):
    """Images and their classes."""

    train_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Folder with one folder of images a class."}
    )
    validation_dir: Optional[str] = field(default=None, metadata={"help": "Of the same kind."})  # noqa: UP045
    test_dir: Optional[str] = field(default=None, metadata={"help": "Of the same kind."})  # noqa: UP045
    image_column_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the images; image, or what a known data set calls it."}
    )
    label_column_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Column of the classes; label, or what a known data set calls it."}
    )
    image_processor_name: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Name or folder of the preprocessing, if it is not the model's."}
    )
    augmentation: str = field(
        default="none",
        metadata={
            "help": "none, or some of flip (mirrored at random), crop (shifted by up to an eighth) and cutout (a "
            "square of half the size is black), joined by _: flip_crop."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_dir is not None:
            self.dataset_name = self.dataset_config_name = self.validation_split_name = None
        known = KNOWN.get(str(self.dataset_name), (self.dataset_name, None, "image", "label"))
        self.dataset_name = known[0]
        self.dataset_config_name = self.dataset_config_name or known[1]
        self.image_column_name = self.image_column_name or known[2]
        self.label_column_name = self.label_column_name or known[3]
        parts_of(self.augmentation)
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
        """The folder's name, where the images are in one."""
        return Path(self.train_dir).resolve().name if self.train_dir else super().title


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    kinds = (ModelArguments, ImageArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, method, args = parse(kinds, argv)
    begin(args)
    args.remove_unused_columns = False  # images become pixels when they are asked for
    with args.main_process_first():
        parts, names = load_images(data, model_args, args.seed)
    image = require_column(parts, str(data.image_column_name), "image_column_name")
    label = require_column(parts, str(data.label_column_name), "label_column_name")
    names = names or class_names(parts, label)
    # Pillow: no torchvision is needed.
    source = data.image_processor_name or model_args.model_name_or_path
    found = {**model_args.hub(), **({"revision": "main"} if data.image_processor_name else {})}
    processor = AutoImageProcessor.from_pretrained(source, backend="pil", **found)
    model = load_classifier(model_args, AutoModelForImageClassification, names)
    feature = parts[TRAIN].features[label]

    def prepared(change: Callable[[Image.Image], Image.Image]) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
        def transform(batch: dict[str, list[Any]]) -> dict[str, Any]:
            pixels = processor([change(x.convert("RGB")) for x in batch[image]], return_tensors="pt")["pixel_values"]
            labels = [class_number(names, feature, v) for v in batch.get(label, [])]  # test data may have none
            return {"pixel_values": list(pixels), **({"labels": labels} if labels else {})}

        return transform

    drawn = functools.partial(augment, names=parts_of(data.augmentation))
    parts = DatasetDict(
        {k: part.with_transform(prepared(drawn if k == TRAIN else lambda x: x)) for k, part in parts.items()}
    )
    run = Run(
        model_args, data, method, args, model, parts, processor, collate, metrics.classification,
        task="image-classification", to_text=lambda row: names[row.argmax()],
    )  # fmt: skip
    return finetune(run)


def load_images(data: ImageArguments, model_args: ModelArguments, seed: int) -> tuple[DatasetDict, list[str]]:
    """From folders, together with the classes that they show; or like any other data, which declares its classes."""
    if data.train_dir is None and data.data_dir is None:
        return load_parts(data, model_args, seed), []
    if data.data_dir is not None:
        parts = load_dataset(data.data_dir, cache_dir=model_args.cache_dir)
    else:
        folders = {TRAIN: data.train_dir, VALIDATION: data.validation_dir, TEST: data.test_dir}
        files = {part: str(Path(folder, "**")) for part, folder in folders.items() if folder is not None}
        parts = load_dataset("imagefolder", data_files=files, drop_labels=False, cache_dir=model_args.cache_dir)
    names = trained_classes(parts, str(data.label_column_name))
    return cut(parts, data, seed), names


def trained_classes(parts: DatasetDict, label: str) -> list[str]:
    """The classes that the training folder has; other folders of test images are no classes."""
    if TRAIN not in parts or not isinstance(parts[TRAIN].features.get(label), ClassLabel):
        return []  # cut and require_column say what is wrong
    feature = parts[TRAIN].features[label]
    shown = {
        part: {feature.int2str(k) for k in parts[part].unique(label)} for part in parts if label in parts[part].features
    }
    unknown = {part: sorted(names - shown[TRAIN]) for part, names in shown.items()}
    if unknown.get(VALIDATION):
        raise ValueError(
            f"the validation folder has classes without training images: {', '.join(unknown[VALIDATION])}."
        )
    if unknown.get(TEST):
        warnings.warn(
            f"the test folder's {', '.join(unknown[TEST])} is no class: its images are predicted, not measured.",
            stacklevel=2,
        )
        parts[TEST] = parts[TEST].remove_columns(label)
    return sorted(shown[TRAIN])


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    batch = {"pixel_values": torch.stack([item["pixel_values"] for item in items])}
    if "labels" in items[0]:
        batch["labels"] = torch.tensor([item["labels"] for item in items])
    return batch


if __name__ == "__main__":
    main()
