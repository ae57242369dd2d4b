"""Fine-tune a model that classifies images: CIFAR, SVHN, FashionMNIST by name, any folder of images, or parquet files.

accelerate launch recipes/image_classification/run.py recipes/image_classification/fam.yaml --train_dir my_images
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

sys.path.append(str(Path(__file__).parents[2]))

import torch
from datasets import DatasetDict, load_dataset
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_fam import FAMTrainingArguments
from recipes.common import metrics
from recipes.common.arguments import DataArguments, MethodArguments, ModelArguments, parse
from recipes.common.data import TEST, TRAIN, VALIDATION, class_names, class_number, cut, load_parts, require_column
from recipes.common.training import Run, begin, finetune

# Name on the Hub, configuration, column of the images, column of the labels.
KNOWN = {
    "cifar10": ("uoft-cs/cifar10", "plain_text", "img", "label"),
    "cifar100": ("uoft-cs/cifar100", "cifar100", "img", "fine_label"),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "image", "label"),
    "fashion_mnist": ("zalando-datasets/fashion_mnist", "fashion_mnist", "image", "label"),
}
NONE, FLIP_CROP = "none", "flip_crop"


@dataclass
class ImageArguments(DataArguments):
    """Images and their classes."""

    train_dir: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Folder with one folder of images a class."}
    )
    validation_dir: Optional[str] = field(default=None, metadata={"help": "Of the same kind."})  # noqa: UP045
    test_dir: Optional[str] = field(default=None, metadata={"help": "Of the same kind."})  # noqa: UP045
    image_column_name: str = field(default="image", metadata={"help": "Column of the images."})
    label_column_name: str = field(default="label", metadata={"help": "Column of the classes."})
    augmentation: str = field(
        default=NONE, metadata={"help": "none, or flip_crop: mirrored at random, shifted by up to an eighth."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_dir is not None:
            self.dataset_name = self.dataset_config_name = None
        if self.dataset_name in KNOWN:
            known = KNOWN[self.dataset_name]
            self.dataset_name, self.dataset_config_name, self.image_column_name, self.label_column_name = known
        if self.augmentation not in (NONE, FLIP_CROP):
            raise ValueError(f"augmentation={self.augmentation!r}: choose {NONE} or {FLIP_CROP}.")
        for name in ("train_dir", "validation_dir", "test_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"{name}={folder!r}: there is no such folder.")
        if (self.validation_dir or self.test_dir) and not self.train_dir:
            raise ValueError("validation_dir and test_dir are given without train_dir.")
        if self.train_dir and self.train_file:
            raise ValueError("give train_dir or train_file, not both.")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Run the recipe; the metrics."""
    kinds = (ModelArguments, ImageArguments, MethodArguments, FAMTrainingArguments)
    model_args, data, method, args = parse(kinds, argv)
    begin(args)
    args.remove_unused_columns = False  # images become pixels when they are asked for
    with args.main_process_first():
        parts = load_images(data, model_args.cache_dir, args.seed)
    image = require_column(parts, data.image_column_name, "image_column_name")
    label = require_column(parts, data.label_column_name, "label_column_name")
    names = class_names(parts, label)
    given = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir}
    # Pillow: no torchvision is needed.
    processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, backend="pil", **given)
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
        **given,
    )
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **given,
    )
    feature = parts[TRAIN].features[label]

    def prepared(change: Callable[[Image.Image], Image.Image]) -> Callable[[dict[str, list[Any]]], dict[str, Any]]:
        def transform(batch: dict[str, list[Any]]) -> dict[str, Any]:
            pixels = processor([change(x.convert("RGB")) for x in batch[image]], return_tensors="pt")["pixel_values"]
            return {"pixel_values": list(pixels), "labels": [class_number(names, feature, v) for v in batch[label]]}

        return transform

    augmented = flip_crop if data.augmentation == FLIP_CROP else unchanged
    parts = DatasetDict(
        {k: part.with_transform(prepared(augmented if k == TRAIN else unchanged)) for k, part in parts.items()}
    )
    run = Run(
        model_args, data, method, args, model, parts, processor, collate, metrics.classification,
        task="image-classification",
        data_name=data.dataset_name or Path(str(data.train_dir or data.train_file)).name,
    )  # fmt: skip
    return finetune(run)


def load_images(data: ImageArguments, cache_dir: str | None, seed: int) -> DatasetDict:
    """From folders, or like any other data."""
    if data.train_dir is None:
        return load_parts(data, cache_dir, seed)
    folders = {TRAIN: data.train_dir, VALIDATION: data.validation_dir, TEST: data.test_dir}
    files = {part: str(Path(folder, "**")) for part, folder in folders.items() if folder is not None}
    return cut(load_dataset("imagefolder", data_files=files, drop_labels=False, cache_dir=cache_dir), data, seed)


def unchanged(image: Image.Image) -> Image.Image:
    return image


def flip_crop(image: Image.Image) -> Image.Image:
    """Mirrored in one of two cases, and shifted by up to an eighth of its size over a black margin.

    Drawn from torch's global random state, which checkpoints contain.
    """
    if torch.rand(()) < 0.5:
        image = ImageOps.mirror(image)
    width, height = image.size
    x, y = (int(torch.randint(-(size // 8), size // 8 + 1, ())) for size in (width, height))
    return image.transform(image.size, Image.Transform.AFFINE, (1, 0, x, 0, 1, y))


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


if __name__ == "__main__":
    main()
