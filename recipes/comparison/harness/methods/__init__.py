"""The methods that are compared, one a file; a file that calls `register` is imported automatically."""

from __future__ import annotations

import importlib
import pkgutil

from .base import METHODS, Method, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_module.name}", __name__)


def make(name: str, configuration: dict[str, object]) -> Method:
    """The method of that name, a fresh one for every run."""
    if name not in METHODS:
        raise ValueError(f"method {name!r}: choose one of {', '.join(sorted(METHODS))}.")
    return METHODS[name](**configuration)


__all__ = ["METHODS", "Method", "make", "register"]
