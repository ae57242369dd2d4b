"""The page that ``hf-fam train TASK --help`` prints: the usual flags, with the defaults of the task.

It needs none of the recipes' packages. `hf-fam train TASK --help_all` lists all flags, and does.
"""

from __future__ import annotations

import textwrap
from typing import Any

from ..recipes import default_configuration

# A flag, its value's name, and what it does. Flags without a line in a task's YAML file state their default here; a
# test compares them with what the recipe does.
Flag = tuple[str, str, str]
_WIDTH, _INDENT = 80, 30

_FILES: tuple[Flag, ...] = (
    ("train_file", "FILE", "csv, tsv, json, jsonl, parquet or arrow"),
    ("validation_file", "FILE", "default: a tenth of the training data"),
    ("test_file", "FILE", "test data, for --do_predict"),
    ("data_dir", "FOLDER", "folder with such files, in place of the three"),
    ("dataset_name", "NAME", "data set on the Hub, in place of files"),
)
_IMAGES: tuple[Flag, ...] = (
    ("train_dir", "FOLDER", "one folder of images for each class"),
    ("validation_dir", "FOLDER", "default: a tenth of the training data"),
    ("test_dir", "FOLDER", "test data, for --do_predict"),
    ("train_file", "FILE", "table with images or their paths"),
    ("dataset_name", "NAME", "cifar10, svhn or others on the Hub"),
    ("image_column", "NAME", "column of the images (default: guessed)"),
    ("label_column", "NAME", "column of the classes (default: guessed)"),
    ("augmentation", "KINDS", "none, or flip, crop, cutout, joined by _"),
)
_TEXTS: tuple[Flag, ...] = (
    *_FILES,
    ("task_name", "NAME", "GLUE task, in place of files"),
    ("text_column", "NAMES", "one, or two with a comma (default: guessed)"),
    ("label_column", "NAME", "column of the labels (default: guessed)"),
    ("max_seq_length", "N", "cut texts to at most N tokens"),
)
_WORDS: tuple[Flag, ...] = (
    *_FILES,
    ("text_column", "NAME", "column with lists of words (default: tokens)"),
    ("label_column", "NAME", "column with lists of labels"),
    ("max_seq_length", "N", "cut texts to at most N tokens (default: 128)"),
)
_LANGUAGE: tuple[Flag, ...] = (
    *_FILES,
    ("text_column", "NAME", "column of the texts (default: text)"),
    ("max_seq_length", "N", "cut texts to at most N tokens"),
)
_DATA = {
    "causal_lm": _LANGUAGE,
    "image_classification": _IMAGES,
    "text_classification": _TEXTS,
    "text_regression": _TEXTS,
    "token_classification": _WORDS,
}
_EVERY_TABLE: tuple[Flag, ...] = (
    ("drop_missing", "", "leave out rows with an empty place"),
    ("encoding", "NAME", "of text files, such as cp1252 (default: utf-8)"),
)
_MODEL: tuple[Flag, ...] = (("model_name_or_path", "NAME", "name on the Hub, or folder"),)
_HEADS: tuple[Flag, ...] = (
    ("ignore_mismatched_sizes", "", "new head, if the saved one has other classes"),
    ("freeze_backbone", "", "train the head alone, with other defaults"),
)
_ADAPTERS: tuple[Flag, ...] = (
    ("use_lora", "BOOL", "train LoRA adapters, or all weights"),
    ("lora_r", "N", "rank of the adapters"),
)
_METHOD: tuple[Flag, ...] = (
    ("method", "NAME", "fam, plain, sam, mixup and others"),
    ("num_train_epochs", "N", "times through the data"),
    ("learning_rate", "X", "largest learning rate"),
    ("per_device_train_batch_size", "N", "items in a batch"),
    ("seed", "N", "of split, new weights and order"),
)
_STRENGTH: tuple[Flag, ...] = (
    ("fam_lambda", "X", "0: plain training (default: {strength})"),
    ("fam_layer", "NAME", "head, representation, or a name that `hf-fam layers MODEL` lists (default: auto, the head)"),
    ("fam_warmup_steps", "X", "steps over which the strength rises; below 1, a fraction of the training (default: 0)"),
)
_OUTPUT: tuple[Flag, ...] = (
    ("output_dir", "FOLDER", "folder of the model"),
    ("do_predict", "", "measure and predict the test data, too"),
    ("save_strategy", "WHEN", "of checkpoints: epoch, steps or no"),
    ("save_total_limit", "N", "number of checkpoints to keep"),
    ("resume_from_checkpoint", "last", "go on from the last checkpoint"),
)
_STRENGTHS = {"causal_lm": "1e-6 for more than 4,096 tokens"}
_HEAD_STRENGTH = "0.003 at the head"


def sections(task: str) -> dict[str, tuple[Flag, ...]]:
    """Return the flags of the page by the name of their section.

    Args:
        task: one of `hf_fam.recipes.TASKS`.
    """
    return {
        "data": (*_DATA[task], *_EVERY_TABLE),
        "model": (*_MODEL, *(_ADAPTERS if task == "causal_lm" else _HEADS)),
        "method": _METHOD,
        "strength": _STRENGTH,
        "output": _OUTPUT,
    }


def page(task: str) -> str:
    """Return the page.

    Args:
        task: one of `hf_fam.recipes.TASKS`.

    Examples:
        >>> "largest learning rate (default: 2e-5)" in page("text_classification")
        True
    """
    import yaml  # huggingface_hub needs it, so it is always there

    defaults = yaml.load(default_configuration(task).read_bytes(), yaml.BaseLoader)  # texts, as they are written
    lines = [f"usage: hf-fam train {task} [FILE.yaml] [--FLAG VALUE ...]"]
    for title, flags in sections(task).items():
        lines += ["", f"{title}:"]
        for flag in flags:
            lines += _entry(flag, defaults, _STRENGTHS.get(task, _HEAD_STRENGTH))
    end = (
        f"A YAML file has the same names, and flags override it. Its line `defaults: {task}` starts from the defaults "
        f"above. `hf-fam train {task} --help_all` lists all flags."
    )
    lines += ["", *textwrap.wrap(end, _WIDTH)]
    return "\n".join(lines)


def _entry(flag: Flag, defaults: dict[str, Any], strength: str) -> list[str]:
    name, value, text = flag
    text = text.format(strength=strength)
    if name in defaults:
        text += f" (default: {defaults[name]})"
    head = f"  --{name} {value}".ljust(_INDENT)
    wrapped = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False)
    if not head.endswith(" "):
        return [head, *(" " * _INDENT + line for line in wrapped)]
    return [head + wrapped[0], *(" " * _INDENT + line for line in wrapped[1:])]
