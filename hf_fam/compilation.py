"""What torch.compile does not do by itself when hooks come and go."""

from __future__ import annotations

import sys

import torch
from torch import nn


def forget_compiled_code() -> None:
    """Have everything that was compiled so far compiled again at its next call.

    Compiled code does not look whether a hook was added (torch skips these guards), and code of one model is reused
    for another of its kind, so a hook that is added later never fires. The only cost is the recompilation.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def is_compiled(model: nn.Module) -> bool:
    """Whether the model as a whole runs as compiled code; compiled submodules do not count.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> is_compiled(model), is_compiled(torch.compile(model))
        (False, True)
    """
    return hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None
