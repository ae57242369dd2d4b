"""What the demo's numbers depend on beside its settings."""

from __future__ import annotations

import platform
from typing import Any

import torch
import transformers

from .. import __version__


def versions() -> dict[str, Any]:
    """Versions, and the number of threads."""
    return {
        "hf_fam": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
