"""Update a transformers configuration when the number of neurons changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from .hidden_layer import HiddenLayer
from .hidden_layer_search import all_hidden_layers


def update_config(model: nn.Module, changed: Iterable[HiddenLayer]) -> None:
    """Write the new width into the configuration, or warn if it does not fit.

    A configuration has one number for all of its MLPs. If they differ, `from_pretrained` would build a model of other
    shapes than those that `save_pretrained` wrote.

    Args:
        model: the model, already changed; without a ``config`` nothing happens.
        changed: its hidden layers that were changed.
    """
    if not hasattr(model, "config"):
        return
    peers = [(hidden, _width_entry(model, hidden)) for hidden in all_hidden_layers(model)]
    for hidden in changed:
        size = _width_entry(model, hidden)
        if size is None:
            _warn(hidden, "the configuration has no number for it")
            continue
        name, configs = size
        alike = [(h, s[1]) for h, s in peers if s is not None and s[0] == name and s[1][0] is configs[0]]
        if len({h.width for h, _ in alike}) > 1:
            _warn(hidden, f"config.{name} is one number for {len(alike)} layers, which now differ")
            continue
        for _, owners in alike:
            for config in owners:
                setattr(config, name, hidden.width)


def _width_entry(model: nn.Module, hidden: HiddenLayer) -> tuple[str, list[Any]] | None:
    """Return the name of the width, and all configurations that hold it.

    The outermost configuration is the first. One may be a copy of another.
    """
    if hidden.naming is None:
        return None
    parts = hidden.names[0].split(".")
    modules = dict(model.named_modules())
    configs = [getattr(modules[".".join(parts[:k])], "config", None) for k in range(len(parts))]
    for name in hidden.naming.sizes:
        side = name.partition("_")[0]
        if side in ("encoder", "decoder") and side not in parts:
            continue
        owners = [config for config in configs if config is not None and hasattr(config, name)]
        if owners:
            return name, owners
    return None


def _warn(hidden: HiddenLayer, reason: str) -> None:
    warnings.warn(
        f"'{hidden.names[0]}' now has {hidden.width} neurons, but {reason}: from_pretrained cannot load what "
        "save_pretrained writes. Give all such layers the same width (hf_fam.landscape.widen with a pattern), or save "
        "with torch.save(model.state_dict(), ...) and repeat the change on a fresh model before loading.",
        UserWarning,
        stacklevel=6,
    )
