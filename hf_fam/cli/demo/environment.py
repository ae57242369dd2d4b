"""What the demo's numbers depend on beside its settings, and which seeds there are."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

from ..._version import __version__


def check_seeds(first: int, last: int) -> None:
    """Before the work, not when the first of the libraries refuses one of them.

    Raises:
        ValueError: a seed is not a number that all libraries take.
    """
    if first < 0 or last >= 2**32:
        raise ValueError(f"seed={first}: give a number of at least 0, and below {2**32 - (last - first)}.")


def versions() -> dict[str, Any]:
    """Versions, and the number of threads."""
    return {
        "hf_fam": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
