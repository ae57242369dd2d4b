"""Checks of the samples and functions that judges and scorers are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..inputs.text import quote


def check_samples(name: str, samples: Any, fewest: int, shape: Sequence[int] | None = None) -> None:
    """Refuse what is no tensor of finite samples.

    Args:
        name: name of the argument, for the message.
        samples: what was given.
        fewest: the smallest number of samples.
        shape: shape of one sample, if it is known.

    Raises:
        ValueError: names the argument, what was given and what to give.
    """
    if not isinstance(samples, Tensor):
        raise ValueError(f"{name}={quote(samples)}: give floating-point samples of shape (n, ...).")
    if samples.ndim < 2 or not samples.is_floating_point():
        raise ValueError(
            f"{name} is {samples.dtype} of shape {tuple(samples.shape)}: give floating-point samples of shape (n, ...)."
        )
    if len(samples) < fewest:
        raise ValueError(f"{name} has {len(samples)} samples: give at least {fewest}.")
    if shape is not None and tuple(samples.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} has samples of shape {tuple(samples.shape[1:])}: give samples of shape {tuple(shape)}."
        )
    if not samples.isfinite().all():
        raise ValueError(f"{name} has values that are not finite: give finite samples.")


def check_function(name: str, function: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: names the argument and the value.
    """
    if not callable(function):
        raise TypeError(f"{name}={quote(function)}: give a function of samples, such as a module.")
