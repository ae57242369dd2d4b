"""The output folder of a Trainer whose settings are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def remove_new_folder(args: Any) -> Iterator[None]:
    """Remove the output folder that a Trainer made inside the ``with`` block, if the block raises.

    The stock Trainer makes it before FAM can look at the model. Folders that existed before, or contain anything, stay.

    Args:
        args: the ``TrainingArguments``; anything else has no output folder.

    Examples:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> folder = Path(tempfile.mkdtemp(), "out")
        >>> with contextlib.suppress(ValueError), remove_new_folder(SimpleNamespace(output_dir=folder)):
        ...     folder.mkdir()
        ...     raise ValueError("an unknown layer")
        >>> folder.exists()
        False
    """
    output_dir = getattr(args, "output_dir", None)
    folder = None if output_dir is None else Path(output_dir).absolute()
    new = [] if folder is None else [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):  # it is not empty, or another process has removed it
            for path in new:
                path.rmdir()
        raise
