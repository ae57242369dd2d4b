"""Arguments of a recipe: a YAML file and the command line, whose flags override it."""

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

from ...methods import METHODS, Method, method_called
from ...train.training_args import FAMArguments, FAMTrainingArguments, refuse_removed_fields
from .. import default_configuration

FAM = "fam"
# The key of a YAML file that names the task whose default settings the file starts from.
DEFAULTS = "defaults"

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

    def __post_init__(self) -> None:
        length = getattr(self, "max_seq_length", 1)  # a field of the recipes for texts
        if length < 1:
            raise ValueError(f"max_seq_length={length}: give a number of tokens of at least 1.")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise ValueError(f"data_dir={self.data_dir!r}: there is no such folder.")
        if self.data_dir is not None and self.train_file is not None:
            raise ValueError("give data_dir or train_file, not both.")
        if self.train_file is not None or self.data_dir is not None:  # override the data set of a YAML file
            self.dataset_name = self.dataset_config_name = self.validation_split_name = None

    def hub_split_names(self) -> dict[str, str]:
        """Return the splits that have another name on the Hub, by the name that they get."""
        return {} if self.validation_split_name is None else {"validation": self.validation_split_name}

    @property
    def title(self) -> str:
        """Name of the data for the model card, without the folders of its path."""
        return self.dataset_name or Path(str(self.data_dir or self.train_file)).resolve().name


# Strengths that are fields of the Trainer's arguments already, such as weight_decay.
_TRAINER_FIELDS = {f.name: f for f in dataclasses.fields(FAMTrainingArguments)}

_Strengths: Any = dataclasses.make_dataclass(
    "_Strengths",
    [
        (
            kind.field,
            Optional[float],
            field(default=None, metadata={"help": f"Strength of {name}, {kind.description}."}),
        )
        for name, kind in METHODS.items()
        if kind.field is not None and kind.field not in _TRAINER_FIELDS
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
        if not all(0 < fraction < 1 for fraction in self.lr_milestones or []):
            raise ValueError(f"lr_milestones={self.lr_milestones!r}: give fractions of the training, such as .3 .6 .8.")


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
    unset = _TRAINER_FIELDS[kind.field].default if kind.field in _TRAINER_FIELDS else None
    return kind(next((value for value in values if value != unset), None))


def parse(
    argument_types: Sequence[Any], argv: Sequence[str] | None = None, methods: Sequence[str] = ()
) -> tuple[Any, ...]:
    """Parse a YAML file and flags into dataclasses.

    Args:
        argument_types: the dataclasses, among them `MethodArguments` and one with the fields of `FAMArguments`.
        argv: the command line without the script. The first argument may be a YAML file; flags override it. Defaults
            to the command line of this process.
        methods: all methods that train with these arguments; the one that the arguments name by default.

    Returns:
        One object for each dataclass.

    Raises:
        ValueError: the YAML file is missing, broken or not a mapping, a name is unknown, a value is out of range, or
            a field of FAM does not exist any more or is set for another method.
        SystemExit: a flag has no value or one of the wrong type; the message names it.
    """
    flags = collect_flags(sys.argv[1:] if argv is None else argv)
    refuse_removed_fields(name for name in map(flag_name, flags) if name is not None)
    parsed = HfArgumentParser(argument_types, allow_abbrev=False).parse_args_into_dataclasses(flags)
    refuse_unused_fields(parsed, methods)
    return parsed


def collect_flags(argv: Sequence[str]) -> list[str]:
    """Return the flags of a command line, after those for the YAML file that it may start with."""
    if argv and not argv[0].startswith("-"):
        return [*as_flags(read_yaml(Path(argv[0]))), *argv[1:]]
    return [*argv]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file, and below it the default settings of the task that its line `defaults: TASK` names.

    Raises:
        ValueError: the file is missing, broken or not a mapping, or there is no such task.
    """
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"'{path}' is no YAML file: the first argument is one, or a flag (--model_name_or_path ...).")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' has to contain lines such as 'learning_rate: 2e-5'.")
    if DEFAULTS not in settings:
        return settings
    try:
        defaults = read_yaml(default_configuration(settings.pop(DEFAULTS)))
    except ValueError as error:
        raise ValueError(f"'{path}', {DEFAULTS}: {error}") from error
    return {**defaults, **settings}


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Return the flags that set the values of a YAML file.

    Examples:
        >>> as_flags({"do_train": True, "learning_rate": "2e-5", "label_names": ["a", "b"], "seed": None})
        ['--do_train=True', '--learning_rate=2e-5', '--label_names', 'a', 'b']
    """
    flags: list[str] = []
    for name, value in settings.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def flag_name(word: str) -> str | None:
    """Return the field that a flag sets, or None for a word that is no flag.

    Examples:
        >>> flag_name("--learning-rate=1e-3"), flag_name("--seed"), flag_name("1")
        ('learning_rate', 'seed', None)
    """
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") else None


def refuse_unused_fields(parsed: Sequence[Any], methods: Sequence[str] = ()) -> None:
    """Refuse fields that have no effect, because they belong to another method.

    Args:
        parsed: the objects that `parse` returns.
        methods: all methods that train with them; that of `MethodArguments` by default.

    Raises:
        ValueError: the message names method and fields.
    """
    named = [arguments.method for arguments in parsed if isinstance(arguments, MethodArguments)]
    used = {*(methods or named or [FAM])}
    fields = {f.name: FAM for f in dataclasses.fields(FAMArguments)}
    fields |= {kind.field: name for name, kind in METHODS.items() if kind.field and kind.field not in _TRAINER_FIELDS}
    unused: dict[str, list[str]] = {}
    for arguments in (a for a in parsed if isinstance(a, FAMArguments | MethodArguments)):
        for f in dataclasses.fields(arguments):
            if f.name in fields and fields[f.name] not in used and getattr(arguments, f.name) != f.default:
                unused.setdefault(fields[f.name], []).append(f.name)
    for owner, names in unused.items():
        raise ValueError(
            f"method={', '.join(sorted(used))} makes no use of {', '.join(names)}: leave out what belongs to {owner}, "
            f"or choose method={owner!r}."
        )
