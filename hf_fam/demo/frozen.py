"""A new head and the layer below it, on a trunk that is not trained."""

from __future__ import annotations

from torch import nn

from ..feature_layer import REPRESENTATION, resolve_layer
from ..training_args import FAMArguments


def freeze_trunk(model: nn.Module) -> None:
    """Freeze everything that the model defines before its representation layer.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> freeze_trunk(model)
        >>> [p.requires_grad for p in model.parameters()]
        [False, False, True, True, True, True]
    """
    _, layer = resolve_layer(model, REPRESENTATION)
    own = {id(p) for p in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) in own:
            return
        parameter.requires_grad_(False)


def frozen_trunk_arguments() -> FAMArguments:
    """What docs/choosing.md recommends there where labels are wrong."""
    return FAMArguments(fam_layer=REPRESENTATION, fam_center=True, fam_lambda=0.01)
