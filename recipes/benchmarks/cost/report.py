"""Tables of what was measured, and under which circumstances."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import torch
import transformers


def markdown(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """A table; what a row lacks stays empty."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3f}" if isinstance(value, float) and value < 20 else f"{value:.0f}"

    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    for row in rows:
        cells = [row.get(c) for c in columns]
        lines.append(" | ".join(c if isinstance(c, str) else cell(c) for c in cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def circumstances() -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{versions}; {torch.get_num_threads()} threads on {os.cpu_count()} cores ({platform.machine()}), float32"
