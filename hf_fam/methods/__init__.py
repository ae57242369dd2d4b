"""Training methods for any ``Trainer``, one a file; a file that calls `register` is imported automatically."""

from __future__ import annotations

import importlib
import pkgutil

from .base import METHODS as METHODS
from .base import Method, Plain, method_called, register

for _module in pkgutil.iter_modules(__path__):
    if not _module.name.endswith("_trainer"):  # these need packages that only one method uses
        importlib.import_module(f".{_module.name}", __name__)

__all__ = ["Method", "Plain", "method_called", "register"]
