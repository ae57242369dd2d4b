"""What is trained, all of a model or a new part on a frozen trunk: the defaults depend on it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from torch import nn

from .estimators import GAUSS_NEWTON
from .feature_layer import AUTO, HEAD, REPRESENTATION, find_head, find_representation, resolve_layer


def trunk_is_frozen(model: nn.Module, layer: str | nn.Module) -> bool:
    """Whether a layer is trained, and nothing that the model defines before it.

    Args:
        model: the model, without wrappers.
        layer: what `FeatureLayer` takes.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> trunk_is_frozen(model, "representation")
        False
        >>> model[0].requires_grad_(False)
        Linear(in_features=4, out_features=4, bias=True)
        >>> trunk_is_frozen(model, "representation")
        True
    """
    below, own = _parameters(model, layer)
    return bool(below) and any(p.requires_grad for p in own) and not any(p.requires_grad for p in below)


def freeze_below(model: nn.Module, layer: str | nn.Module) -> None:
    """Freeze everything that the model defines before a layer.

    Args:
        model: the model, without wrappers.
        layer: what `FeatureLayer` takes.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> freeze_below(model, "representation")
        >>> [p.requires_grad for p in model.parameters()]
        [False, False, True, True, True, True]
    """
    below, _ = _parameters(model, layer)
    for parameter in below:
        parameter.requires_grad_(False)


def _parameters(model: nn.Module, layer: str | nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Those that the model defines before a layer, and the layer's own."""
    _, module = resolve_layer(model, layer)
    own = list(module.parameters())
    below: list[nn.Parameter] = []
    for parameter in model.parameters():
        if any(parameter is p for p in own):
            break
        below.append(parameter)
    return below, own


@dataclass(frozen=True)
class Regime:
    """What the defaults depend on.

    Attributes:
        layer: what ``"auto"`` stands for, or the layer that was given.
        frozen_trunk: whether the layer is a hidden one that is trained on a frozen trunk, under Gauss-Newton probes.
            There the features are centred and the strength is `FROZEN_TRUNK_LAMBDA`; nothing else was tried.
    """

    layer: str
    frozen_trunk: bool


def find_regime(model: nn.Module, layer: str, estimator: str) -> Regime:
    """Look at what is trained; ``"auto"`` is the representation if it is trained on a frozen trunk, else the head.

    Args:
        model: the model, without wrappers.
        layer: ``"auto"`` or a layer.
        estimator: as it was given, ``"auto"`` included.
    """
    probes = estimator in (AUTO, GAUSS_NEWTON)
    if layer != AUTO:
        _, module = resolve_layer(model, layer)
        hidden = module is not find_head(model)[1]
        return Regime(layer, probes and hidden and trunk_is_frozen(model, layer))
    with contextlib.suppress(ValueError):  # no layer below the head, or no layer at all
        find_representation(model)
        if probes and trunk_is_frozen(model, REPRESENTATION):
            return Regime(REPRESENTATION, True)
    return Regime(HEAD, False)
