"""Values of the Trainer's own arguments that would fail, or do nothing sensible, after the work has begun."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_available_reporting_integrations

from ...inputs.numbers import LARGEST_SEED, LARGEST_WHOLE, require_number, require_whole
from ...inputs.text import first_line, quote

# Arguments of `require_number` by field.
NUMBERS: dict[str, dict[str, Any]] = {
    "learning_rate": {"low": 0},
    "weight_decay": {"low": 0},
    "max_grad_norm": {"low": 0},
    "adam_beta1": {"low": 0, "high": 1, "open_high": True},
    "adam_beta2": {"low": 0, "high": 1, "open_high": True},
    "adam_epsilon": {"low": 0},
    "num_train_epochs": {"low": 0, "high": LARGEST_WHOLE, "open_low": True},
    "warmup_steps": {"low": 0, "high": LARGEST_WHOLE},
    "label_smoothing_factor": {"low": 0, "high": 1, "open_high": True},
    "neftune_noise_alpha": {"low": 0, "open_low": True},
    "eval_delay": {"low": 0, "high": LARGEST_WHOLE},
    "logging_steps": {"low": 0, "high": LARGEST_WHOLE, "open_low": True},
    "save_steps": {"low": 0, "high": LARGEST_WHOLE, "open_low": True},
    "eval_steps": {"low": 0, "high": LARGEST_WHOLE, "open_low": True},
    "lora_dropout": {"low": 0, "high": 1, "open_high": True},
}
# Smallest and largest whole number by field.
WHOLE_NUMBERS = {
    **dict.fromkeys(
        (
            "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
            "eval_accumulation_steps", "torch_empty_cache_steps", "save_total_limit", "dataloader_prefetch_factor",
            "lora_alpha",
        ),
        (1, LARGEST_WHOLE),
    ),
    "max_steps": (-1, LARGEST_WHOLE),
    "dataloader_num_workers": (0, 4096),
    "lora_r": (1, 65_536),
    "seed": (0, LARGEST_SEED),
    "data_seed": (0, LARGEST_SEED),
}  # fmt: skip


def check_training_arguments(arguments: Any) -> None:
    """Refuse values that are out of range, and names of things that are not there.

    Args:
        arguments: an object with some of the fields.

    Raises:
        ValueError: names the argument, the value and what to do.
    """
    for name, bounds in NUMBERS.items():
        value = getattr(arguments, name, None)
        if value is not None:
            require_number(name, value, **bounds)
    for name, (low, high) in WHOLE_NUMBERS.items():
        value = getattr(arguments, name, None)
        if value is not None:
            require_whole(name, value, low, high)
    if isinstance(arguments, TrainingArguments):
        check_reporters(arguments)
        check_schedule(arguments)
        check_compilation(arguments)


def check_reporters(args: TrainingArguments) -> None:
    """Refuse a reporter that is unknown or not installed.

    Raises:
        ValueError: names the reporter and those that are installed.
    """
    installed = get_available_reporting_integrations()
    for name in [args.report_to] if isinstance(args.report_to, str) else args.report_to or []:
        if name not in ("none", "all", *installed):
            raise ValueError(
                f"report_to={quote(name)}: choose none, or what is installed here: {', '.join(installed) or 'nothing'}."
            )


def check_schedule(args: TrainingArguments) -> None:
    """Refuse a schedule that cannot be made.

    Raises:
        ValueError: names the schedule and its arguments.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    options: Any = args.lr_scheduler_kwargs
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=options)
    except Exception as error:  # of the schedule's own kinds
        raise ValueError(
            f"lr_scheduler_type={quote(name)}, lr_scheduler_kwargs={quote(options)}: the schedule cannot be made "
            f"({first_line(error)})."
        ) from error


def check_compilation(args: TrainingArguments) -> None:
    """Refuse a backend or a mode that torch.compile does not have.

    Raises:
        ValueError: names the argument.
    """
    for name, option in (("torch_compile_backend", "backend"), ("torch_compile_mode", "mode")):
        value: Any = getattr(args, name)
        if value is not None:
            try:
                torch.compile(lambda x: x, **{option: value})  # compiles nothing yet
            except Exception as error:  # of torch's own kinds
                raise ValueError(f"{name}={quote(value)}: torch does not know it ({first_line(error)}).") from error
