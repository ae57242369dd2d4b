"""Make torch.compile notice hooks that are added or removed."""

from __future__ import annotations

import torch
from torch import nn

from ..calculus.torch_internals import inside_compiled, is_compiled_in_place, is_dynamo_loaded


def forget_compiled_code() -> None:
    """Discard compiled code, so that every function compiles at its next call.

    torch skips the guards on hooks and reuses the code of one model for another of its kind. So a hook that is added
    later would never run. The only cost is the recompilation.
    """
    if is_dynamo_loaded():
        torch.compiler.reset()


def is_compiled(model: nn.Module) -> bool:
    """Return True if the model as a whole runs as compiled code.

    Compiled submodules do not count.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> is_compiled(model), is_compiled(torch.compile(model))
        (False, True)
    """
    return inside_compiled(model) is not None or is_compiled_in_place(model)
