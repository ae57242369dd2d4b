"""Arguments of a recipe: which model, which data, which method."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ...inputs.numbers import require_number, require_whole
from ...inputs.text import LONGEST_PATH, quote
from ...methods import METHODS, Method, method_called
from ...train.training_args import FAMTrainingArguments

FAM = "fam"

# HfArgumentParser reads annotations, and "X | None" as strings only from Python 3.10.x on: Optional works everywhere.
# ruff: noqa: UP045


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str = field(metadata={"help": "Name on the Hub, or path of a folder."})
    tokenizer_name: Optional[str] = field(
        default=None, metadata={"help": "Tokenizer name or path. Defaults to the model's own."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    attn_implementation: Optional[str] = field(
        default=None,
        metadata={
            "help": "Attention implementation. Choose eager for fam_estimator hessian or gauss_newton at a layer below "
            "attention."
        },
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Use a new head if the saved one is for another number of classes."},
    )
    freeze_backbone: bool = field(
        default=False,
        metadata={
            "help": "Train the head alone. The features of the frozen backbone are computed once and kept in cache_dir."
        },
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Start from random weights. Only configuration and preprocessing of the model are loaded."},
    )
    cache_dir: Optional[str] = field(default=None, metadata={"help": "Folder for downloaded models and data."})
    token: Optional[str] = field(
        default=None, metadata={"help": "Access token for private models. Needed only if you are not logged in."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that is saved with the model."})

    def __post_init__(self) -> None:
        if self.freeze_backbone and self.from_scratch:
            raise ValueError("freeze_backbone with from_scratch would train a head on random features: choose one.")

    def hub_options(self) -> dict[str, Any]:
        """Return the arguments with which `from_pretrained` loads files of the model."""
        return {
            "revision": self.model_revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    def tokenizer_options(self) -> dict[str, Any]:
        """Return the arguments of `AutoTokenizer.from_pretrained`.

        The revision is that of the model, so a tokenizer with another name is loaded from its main branch.
        """
        if self.tokenizer_name is None:
            return {"pretrained_model_name_or_path": self.model_name_or_path, **self.hub_options()}
        return {"pretrained_model_name_or_path": self.tokenizer_name, **self.hub_options(), "revision": "main"}


@dataclass
class DataArguments:
    """Which data is used: a data set on the Hub, a folder, or files."""

    dataset_name: Optional[str] = field(default=None, metadata={"help": "Name of a data set on the Hub."})
    dataset_config_name: Optional[str] = field(
        default=None, metadata={"help": "Configuration of the data set on the Hub."}
    )
    validation_split_name: Optional[str] = field(
        default=None, metadata={"help": "Split of the data set on the Hub used for validation. Defaults to validation."}
    )
    data_dir: Optional[str] = field(
        default=None, metadata={"help": "Folder with train.csv, validation.csv and test.csv (or json, parquet)."}
    )
    train_file: Optional[str] = field(
        default=None, metadata={"help": "Training data: a csv, tsv, json, jsonl, parquet or arrow file."}
    )
    validation_file: Optional[str] = field(
        default=None, metadata={"help": "Validation data, in the format of train_file."}
    )
    test_file: Optional[str] = field(
        default=None, metadata={"help": "Test data for --do_predict, in the format of train_file."}
    )
    encoding: Optional[str] = field(
        default=None, metadata={"help": "Encoding of text files, such as cp1252. Defaults to utf-8."}
    )
    drop_missing: bool = field(
        default=False,
        metadata={"help": "Leave out rows with an empty text, image or label, instead of refusing them."},
    )
    train_val_split: float = field(
        default=0.1,
        metadata={"help": "Fraction of the training data to validate on if there is no validation data."},
    )
    max_train_samples: Optional[int] = field(
        default=None, metadata={"help": "Train on at most N samples, chosen at random with the seed."}
    )
    max_eval_samples: Optional[int] = field(
        default=None, metadata={"help": "Validate on at most N samples, chosen at random with the seed."}
    )
    max_predict_samples: Optional[int] = field(
        default=None, metadata={"help": "Predict at most N samples, the first ones."}
    )
    # True if all rows are training data, of which a comparison makes its own splits; validation data repeats them then.
    is_whole: bool = field(default=False, init=False)
    has_validation: bool = field(default=True, init=False)
    was_split: bool = field(default=False, init=False)
    # Rows that drop_missing left out, by split.
    dropped_rows: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        require_number("train_val_split", self.train_val_split, 0, 1, open_low=True, open_high=True)
        # The length is a field of the recipes for texts.
        for name in ("max_seq_length", "max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name, None) is not None:
                setattr(self, name, require_whole(name, getattr(self, name)))
        if self.data_dir is not None and not os.path.isdir(self.data_dir):
            raise ValueError(f"data_dir={quote(self.data_dir)}: there is no such folder.")
        if self.data_dir is not None and self.train_file is not None:
            raise ValueError("give data_dir or train_file, not both.")
        if self.train_file is not None or self.data_dir is not None:  # override the data set of a YAML file
            self.dataset_name = self.dataset_config_name = self.validation_split_name = None

    def files(self) -> dict[str, str]:
        """Return the files of the splits that are named."""
        names = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: file for split, file in names.items() if file is not None}

    def source_of(self, split: str | None) -> str:
        """Return the argument that names the data of a split, with its value.

        Args:
            split: name of the split; None for the whole data.

        Examples:
            >>> DataArguments(train_file="a.csv").source_of("validation")
            "train_file='a.csv'"
        """
        files = self.files()
        if self.data_dir or self.dataset_name or not files:
            argument = "data_dir" if self.data_dir else "dataset_name"
            return f"{argument}={quote(self.data_dir or self.dataset_name, LONGEST_PATH)}"
        named = split if split in files else next(iter(files))
        return f"{named}_file={quote(files[named], LONGEST_PATH)}"

    def hub_split_names(self) -> dict[str, str]:
        """Return the splits that have another name on the Hub, by the name that they get."""
        return {} if self.validation_split_name is None else {"validation": self.validation_split_name}

    @property
    def title(self) -> str:
        """Name of the data for the model card, without the folders of its path."""
        return self.dataset_name or Path(str(self.data_dir or self.train_file)).resolve().name


# Strengths that are fields of the Trainer's arguments already, such as weight_decay.
TRAINER_FIELDS = {f.name: f for f in dataclasses.fields(FAMTrainingArguments)}

_Strengths: Any = dataclasses.make_dataclass(
    "_Strengths",
    [
        (
            kind.field,
            Optional[float],
            field(default=None, metadata={"help": f"Strength of {name}: {kind.description}."}),
        )
        for name, kind in METHODS.items()
        if kind.field is not None and kind.field not in TRAINER_FIELDS
    ],
)


@dataclass
class MethodArguments(_Strengths):
    """How the model is trained, with a field for the strength of each method."""

    method: str = field(default=FAM, metadata={"help": f"How to train: {', '.join(METHODS)}."})
    lr_milestones: Optional[list[float]] = field(
        default=None,
        metadata={
            "help": "Fractions of the training after which the learning rate is multiplied by lr_gamma, such as "
            "'.3 .6 .8'. Replaces lr_scheduler_type; there is no warm-up."
        },
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "Factor of the learning rate at each of lr_milestones."})

    def __post_init__(self) -> None:
        method_called(self.method)
        for kind in METHODS.values():
            if kind.field is not None and getattr(self, kind.field, None) is not None:
                kind(getattr(self, kind.field))  # refuses a value out of range
        require_number("lr_gamma", self.lr_gamma, 0, open_low=True)
        for fraction in self.lr_milestones or []:
            require_number("lr_milestones", fraction, 0, 1, open_low=True, open_high=True)


def make_method(name: str, *arguments: Any) -> Method:
    """Return a method with the strength that the arguments set.

    Args:
        name: name of the method.
        *arguments: objects whose fields may set its strength.

    Raises:
        ValueError: there is no such method, or the strength is out of range.
    """
    kind = method_called(name)
    values = [getattr(a, kind.field) for a in arguments if kind.field is not None and hasattr(a, kind.field)]
    unset = TRAINER_FIELDS[kind.field].default if kind.field in TRAINER_FIELDS else None
    return kind(next((value for value in values if value != unset), None))
