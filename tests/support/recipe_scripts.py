"""Scripts of a recipe's folder, imported as its commands import them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def recipe_scripts(folder: Path, *names: str) -> Iterator[dict[str, ModuleType]]:
    """Yield the modules of a folder by name.

    Other recipes have scripts of the same names, so all are forgotten before and after.

    Args:
        folder: the recipe's.
        names: of all scripts that are imported, directly or by another one.
    """
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    path, sys.path = sys.path, [str(folder), *sys.path]
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path = path
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(kept)
