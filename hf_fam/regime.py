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
    _, module = resolve_layer(model, layer)
    own = {id(p) for p in module.parameters()}
    names = list(model.parameters())
    first = next((k for k, p in enumerate(names) if id(p) in own), 0)
    trained = any(p.requires_grad for p in module.parameters())
    return first > 0 and trained and not any(p.requires_grad for p in names[:first])


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
