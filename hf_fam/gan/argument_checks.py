"""Checks of the arguments of WGAN training."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from transformers import SchedulerType

from ..inputs.numbers import as_number
from ..inputs.text import quote
from .penalty import SIDES, check_penalty

NONE = "none"
PENALTIES = (*SIDES, NONE)
POINTS = ("line", "local", "local_generated", "local_both", "real", "generated")
NORMAL, UNIFORM = "normal", "uniform"
PRIORS = (NORMAL, UNIFORM)

_NUMBERS = (
    "penalty_lambda",
    "penalty_target",
    "penalty_radius",
    "clip_limit",
    "ema_decay",
    "sample_low",
    "sample_high",
)
_RATES = ("learning_rate", "adam_beta1", "adam_beta2")


def numbers_from_strings(args: Any) -> None:
    """Convert strings to numbers, because YAML reads 1e-4 as a string.

    Raises:
        ValueError: a string is not a number; the message names the argument.
    """
    own = [f"{network}{name}" for network in ("", "critic_", "generator_") for name in _RATES]
    for name in (*_NUMBERS, *own):
        value = getattr(args, name)
        if isinstance(value, str):
            try:
                setattr(args, name, float(value))
            except ValueError:
                raise ValueError(f"{name}={quote(value)} is not a number: give a number such as 0.001.") from None


def check_steps(args: Any) -> None:
    """Refuse numbers of steps and classes that are out of range.

    Raises:
        ValueError: a value is out of range; the message names the argument.
    """
    for name in ("n_critic", "n_critic_warmup", "latent_size", "num_classes", "max_generator_steps", "penalty_every"):
        _check_whole(args, name, 1)
    for name in ("n_critic_warmup_steps", "n_critic_warmup_every"):
        _check_whole(args, name, 0)
    _check_choice(args, "latent_prior", PRIORS)
    if args.n_critic_warmup is None and args.n_critic_warmup_every:
        raise ValueError(
            f"n_critic_warmup_every={args.n_critic_warmup_every} does not apply without n_critic_warmup: give the "
            "number of critic steps during the warm-up, such as n_critic_warmup=100."
        )


def check_penalty_settings(args: Any) -> None:
    """Refuse settings of the penalty that are out of range or contradict each other.

    Raises:
        ValueError: a value is out of range; the message names the argument.
    """
    _check_choice(args, "penalty", PENALTIES)
    _check_choice(args, "penalty_points", POINTS)
    if _is_number(args.penalty_lambda) and args.penalty_lambda == 0:
        raise ValueError('penalty_lambda=0: give a positive number, or penalty="none".')
    for name in ("penalty_lambda", "penalty_target", "penalty_radius", "clip_limit"):
        _check_positive(args, name)
    if args.penalty_radius != 1 and not args.penalty_points.startswith("local"):
        raise ValueError(
            f"penalty_radius={args.penalty_radius!r} does not apply to penalty_points={args.penalty_points!r}: "
            'leave it out, or use "local", "local_generated" or "local_both".'
        )
    if args.penalty != NONE:
        try:
            check_penalty(args.penalty, args.penalty_target)
        except ValueError as error:
            raise ValueError(f"penalty={quote(args.penalty)}, penalty_{error}") from None
    if args.clip_limit is not None and args.penalty != NONE:
        raise ValueError(
            f"clip_limit={quote(args.clip_limit)} and penalty={args.penalty!r}: clipping works without a penalty: "
            'give penalty="none", or leave clip_limit out.'
        )


def check_optimizers(args: Any) -> None:
    """Refuse settings of the optimizers that are out of range.

    Raises:
        ValueError: a value is out of range; the message names the argument.
    """
    if not (_is_number(args.learning_rate) and args.learning_rate >= 0):
        raise ValueError(f"learning_rate={quote(args.learning_rate)}: give a number of at least 0.")
    for network in ("critic_", "generator_"):
        _check_positive(args, f"{network}learning_rate")
    for network in ("", "critic_", "generator_"):
        for name in (f"{network}adam_beta1", f"{network}adam_beta2"):
            value = getattr(args, name)
            if not _is_left_out(args, name) and not (_is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name}={quote(value)}: give a number of at least 0 and below 1.")
        _check_scheduler(args, f"{network}lr_scheduler_type")
    if args.ema_decay is not None and not (_is_number(args.ema_decay) and 0 < args.ema_decay < 1):
        raise ValueError(f"ema_decay={quote(args.ema_decay)}: give a number between 0 and 1, or None.")
    if args.fp16:
        raise ValueError(
            "fp16=True does not work, because loss and squared penalty need different scales, and the gradient "
            "scaler may skip steps of one network. Use bf16=True, which has the range of float32, or float32."
        )


def check_samples(args: Any) -> None:
    """Refuse settings of evaluations and pictures that are out of range.

    Raises:
        ValueError: a value is out of range; the message names the argument.
    """
    _check_whole(args, "sample_steps", 0)
    for name in ("sample_count", "eval_samples"):
        _check_whole(args, name, 1)
    low, high = args.sample_low, args.sample_high
    if not (_is_number(low) and _is_number(high) and low < high):
        raise ValueError(f"sample_low={quote(low)}, sample_high={quote(high)}: give two numbers, lower first.")


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(as_number(value))


def _is_left_out(args: Any, name: str) -> bool:
    """Return True if the argument is None by default and unset."""
    return getattr(args, name) is None and args.__dataclass_fields__[name].default is None


def _check_whole(args: Any, name: str, least: int) -> None:
    """Check a whole number and store it as an int.

    YAML and JSON may have turned 2 into 2.0.
    """
    value = getattr(args, name)
    if _is_left_out(args, name):
        return
    if not _is_number(value) or value != int(value) or value < least:
        raise ValueError(f"{name}={quote(value)}: give a whole number of at least {least}.")
    setattr(args, name, int(value))


def _check_positive(args: Any, name: str) -> None:
    value = getattr(args, name)
    if not _is_left_out(args, name) and not (_is_number(value) and value > 0):
        raise ValueError(f"{name}={quote(value)}: give a positive number.")


def _check_scheduler(args: Any, name: str) -> None:
    if _is_left_out(args, name):
        return
    value, known = getattr(args, name), [kind.value for kind in SchedulerType]
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={quote(value, longest=16)}: give one of {', '.join(map(repr, known))}.")


def _check_choice(args: Any, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(args, name)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={quote(value)}: give one of {', '.join(map(repr, choices))}.")
