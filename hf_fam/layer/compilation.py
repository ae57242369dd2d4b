"""What torch.compile does not do by itself when hooks come and go."""

from __future__ import annotations

import torch
from torch import nn

from ..calculus.torch_internals import inside_compiled, is_compiled_in_place, is_dynamo_loaded


def forget_compiled_code() -> None:
    """Have everything that was compiled so far compiled again at its next call.

    Compiled code does not look whether a hook was added (torch skips these guards), and code of one model is reused
    for another of its kind, so a hook that is added later never fires. The only cost is the recompilation.
    """
    if is_dynamo_loaded():
        torch.compiler.reset()


def is_compiled(model: nn.Module) -> bool:
    """Whether the model as a whole runs as compiled code; compiled submodules do not count.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> is_compiled(model), is_compiled(torch.compile(model))
        (False, True)
    """
    return inside_compiled(model) is not None or is_compiled_in_place(model)
