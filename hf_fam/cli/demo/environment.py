"""The versions that the demo's numbers depend on, and a check of its seeds."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

from ..._version import __version__


def check_seeds(first: int, last: int) -> None:
    """Refuse seeds that some library does not accept, before any work.

    Raises:
        ValueError: a seed is out of range.
    """
    if first < 0 or last >= 2**32:
        raise ValueError(f"seed={first}: give a number of at least 0 and below {2**32 - (last - first)}.")


def versions() -> dict[str, Any]:
    """Return the versions of libraries and the number of threads."""
    return {
        "hf_fam": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
