"""The arguments of a recipe: a YAML file, and a command line that wins over it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import yaml
from transformers import HfArgumentParser

from hf_fam import FAMArguments

FAM, BASELINE, SAM = "fam", "baseline", "sam"
METHODS = (FAM, BASELINE, SAM)

# HfArgumentParser reads annotations, and "X | None" as strings only from Python 3.10.x on: Optional works everywhere.
# ruff: noqa: UP045


@dataclass
class ModelArguments:
    """Which model is fine-tuned."""

    model_name_or_path: str = field(metadata={"help": "Name on the Hub, or a folder."})
    tokenizer_name: Optional[str] = field(default=None, metadata={"help": "If it is not the model's."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})
    attn_implementation: Optional[str] = field(
        default=None, metadata={"help": "eager for probes of a layer below an attention."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Make a new head where the saved one has another number of classes."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "New weights: the name or folder gives configuration and preprocessing alone."}
    )
    cache_dir: Optional[str] = field(default=None, metadata={"help": "For data and models that were downloaded."})
    token: Optional[str] = field(default=None, metadata={"help": "For private models, where `hf auth login` is none."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the code that comes with a model."})

    def hub(self) -> dict[str, Any]:
        """How files of the model are found."""
        return {
            "revision": self.model_revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }

    def tokenizer(self) -> dict[str, Any]:
        """Which tokenizer, and how its files are found; a tokenizer of its own has no branch of the model's."""
        if self.tokenizer_name is None:
            return {"pretrained_model_name_or_path": self.model_name_or_path, **self.hub()}
        return {"pretrained_model_name_or_path": self.tokenizer_name, **self.hub(), "revision": "main"}


@dataclass
class DataArguments:
    """Which data: a name on the Hub, a folder, or files of one's own (csv, json, jsonl, parquet)."""

    dataset_name: Optional[str] = field(default=None, metadata={"help": "Name on the Hub."})
    dataset_config_name: Optional[str] = field(default=None, metadata={"help": "Its configuration."})
    validation_split_name: Optional[str] = field(
        default=None, metadata={"help": "Its part that validates, if it is not called validation."}
    )
    data_dir: Optional[str] = field(
        default=None, metadata={"help": "Folder with train.csv, validation.csv, test.csv (or json, parquet)."}
    )
    train_file: Optional[str] = field(default=None, metadata={"help": "csv, json, jsonl or parquet."})
    validation_file: Optional[str] = field(default=None, metadata={"help": "Of the same kind."})
    test_file: Optional[str] = field(default=None, metadata={"help": "Of the same kind; for --do_predict."})
    train_val_split: float = field(
        default=0.1, metadata={"help": "Part of the training data that validates, where no validation data is given."}
    )
    max_train_samples: Optional[int] = field(default=None, metadata={"help": "Use so many, drawn by the seed."})
    max_eval_samples: Optional[int] = field(default=None, metadata={"help": "Use so many, drawn by the seed."})
    max_predict_samples: Optional[int] = field(default=None, metadata={"help": "Use the first ones only."})

    def __post_init__(self) -> None:
        length = getattr(self, "max_seq_length", 1)  # of the recipes for texts
        if length < 1:
            raise ValueError(f"max_seq_length={length}: give a number of tokens of at least 1.")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"data_dir={self.data_dir!r}: there is no such folder.")
        if self.data_dir is not None and self.train_file is not None:
            raise ValueError("give data_dir or train_file, not both.")
        if self.train_file is not None or self.data_dir is not None:  # own data wins over a configuration's name
            self.dataset_name = self.dataset_config_name = self.validation_split_name = None

    def splits(self) -> dict[str, str]:
        """What validates and tests, and what the data set on the Hub calls it."""
        return {} if self.validation_split_name is None else {"validation": self.validation_split_name}

    @property
    def title(self) -> str:
        """What a card calls the data: never the folders that it lies in."""
        return self.dataset_name or Path(str(self.data_dir or self.train_file)).resolve().name


@dataclass
class MethodArguments:
    """How it is trained."""

    method: str = field(default=FAM, metadata={"help": "fam, baseline (plain training) or sam."})
    sam_rho: float = field(default=0.05, metadata={"help": "Radius of SAM (Foret et al. 2021)."})
    lr_milestones: Optional[list[float]] = field(
        default=None,
        metadata={
            "help": "Fractions of the training after which lr_gamma multiplies the rate: '.3 .6 .8'. It stands in "
            "place of lr_scheduler_type; there is no warm-up."
        },
    )
    lr_gamma: float = field(default=0.1, metadata={"help": "See lr_milestones."})

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r}: choose one of {', '.join(METHODS)}.")
        if not self.sam_rho > 0:
            raise ValueError(f"sam_rho={self.sam_rho!r}: give a positive radius.")
        if not all(0 < fraction < 1 for fraction in self.lr_milestones or []):
            raise ValueError(f"lr_milestones={self.lr_milestones!r}: give fractions of the training, such as .3 .6 .8.")


def parse(kinds: Sequence[type], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One object for each dataclass.

    Args:
        kinds: the dataclasses; `MethodArguments` and one with the fields of FAM are among them.
        argv: the command line without the script: first, if it begins with no dash, a YAML file; flags win over it.
            The process's own by default.

    Raises:
        ValueError: the file is missing, broken or contains no mapping, a name is unknown, a value is out of range, or a
            field of FAM is given to another method.
        SystemExit: a flag misses its value, or it is of the wrong type; the message names it.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv = [*flags(read_yaml(Path(argv[0]))), *argv[1:]]
    found = HfArgumentParser(kinds, allow_abbrev=False).parse_args_into_dataclasses(argv)
    refuse_unused([x for x in found if isinstance(x, FAMArguments)], [x for x in found if hasattr(x, "method")])
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"'{path}' is no YAML file: the first argument is one, or a flag (--model_name_or_path ...).")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' has to contain lines such as 'learning_rate: 2e-5'.")
    return found


def flags(values: dict[str, Any]) -> list[str]:
    """What one would type for the values of a YAML file.

    Examples:
        >>> flags({"do_train": True, "learning_rate": "2e-5", "label_names": ["a", "b"], "seed": None})
        ['--do_train=True', '--learning_rate=2e-5', '--label_names', 'a', 'b']
    """
    typed: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            typed += [f"--{name}", *map(str, value)]
        elif value is not None:
            typed.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return typed


def refuse_unused(fam: Sequence[FAMArguments], methods: Sequence[Any]) -> None:
    """A strength that has no effect would be noticed too late."""
    for given, chosen in ((f, m) for f in fam for m in methods if m.method != FAM):
        changed = [f.name for f in dataclasses.fields(FAMArguments) if getattr(given, f.name) != f.default]
        if changed:
            raise ValueError(
                f"method={chosen.method!r} makes no use of {', '.join(changed)}: leave out what belongs to FAM, or "
                f"take method={FAM!r}."
            )
