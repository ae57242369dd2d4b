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


def is_inside_compiled(model: nn.Module, module: nn.Module) -> bool:
    """Return True if a module, or anything around it, runs as compiled code.

    Args:
        model: the model that contains the module.
        module: the module.

    Examples:
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
        >>> model[0].compile()
        >>> is_inside_compiled(model, model[0][0]), is_inside_compiled(model, model[1])
        (True, False)
    """
    return any(is_compiled(outer) and any(inner is module for inner in outer.modules()) for outer in model.modules())
