"""Split neurons, merge duplicates and widen layers without changing the network's function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..inputs.numbers import require_number, require_whole
from .hidden_layer import HiddenLayer, check_neuron
from .hidden_layer_search import all_hidden_layers, find_hidden_layer, find_hidden_layers
from .model_config import update_config

# A ratio outside [0, 1], where splitting a minimum makes no local minimum.
RATIO_OUTSIDE = 1.5


@torch.no_grad()
def split_neuron(
    model: nn.Module,
    layer: str | nn.Module,
    neuron: int,
    ratio: float = 0.5,
    *,
    next_layer: str | nn.Module | None = None,
) -> int:
    """Replace a hidden neuron by two with the same incoming weights.

    The function stays as it is.

    The outgoing weights v become ``ratio * v`` at the old place and ``v - ratio * v`` for the new neuron, the last of
    the layer. The ratio is any real number. Petzka and Sminchisescu 2021 (arXiv 1812.06486) study its effect on the
    landscape. In a gated MLP, both factors of the neuron are copied.

    The model is changed in place, as by transformers' ``resize_token_embeddings``, and gets *new parameters*. Create
    the optimizer afterwards, because an older one would train parameters that are no longer used. ``config`` is
    updated, or a warning says that it cannot be.

    Args:
        model: any module with linear layers; not wrapped, quantized or sharded.
        layer: the linear layer that makes the neuron: dotted name, or module.
        neuron: its index in the layer.
        ratio: lambda, the share of the outgoing weights that stays with the old neuron.
        next_layer: the linear layer that reads the neuron, if it cannot be found automatically.

    Returns:
        The index of the new neuron.

    Raises:
        ValueError: there is no such layer or neuron, the ratio is not finite, or the next layer is unknown.
        TypeError: the layer is not linear, or its weights cannot be rewritten.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.randn(5, 3)
        >>> before = model(x)
        >>> split_neuron(model, "0", neuron=1, ratio=1.5)
        4
        >>> torch.allclose(model(x), before, atol=1e-6), model[2].weight.shape
        (True, torch.Size([2, 5]))
    """
    hidden = find_hidden_layer(model, layer, next_layer)
    neuron = check_neuron(hidden, neuron)
    check_ratio(ratio)
    split_hidden(hidden, [neuron], ratio)
    update_config(model, [hidden])
    return hidden.width - 1


@torch.no_grad()
def widen(
    model: nn.Module,
    layer: str | nn.Module | Sequence[str | nn.Module],
    by: int,
    *,
    ratio: float = RATIO_OUTSIDE,
    neurons: Sequence[int] | None = None,
    next_layer: str | nn.Module | None = None,
) -> None:
    """Give layers more neurons without changing the function.

    Each new neuron is split off an old one. A ratio between 0 and 1 may turn a minimum of the smaller network into a
    local minimum of the wider one. At 1/2, both copies receive equal gradients and stay equal, except for dropout and
    rounding. The default lies outside that interval.

    The model is changed in place and gets new parameters: see `split_neuron` about optimizers and ``config``. With a
    pattern that matches all MLPs of a transformers model, its configuration is updated, and the model can be saved and
    loaded as usual.

    Args:
        model: any module with linear layers; not wrapped, quantized or sharded.
        layer: a linear layer by name or module, several of them, or a name with ``*``, such as
            ``"bert.encoder.layer.*.intermediate.dense"``. All are widened alike.
        by: how many neurons each layer gains.
        ratio: lambda, the share of the outgoing weights that stays with the old neuron.
        neurons: the ``by`` neurons to split; by default those with the largest outgoing weights. Every process of a
            distributed training chooses the same.
        next_layer: see `split_neuron`; for a single layer.

    Raises:
        ValueError: ``by`` is not positive, the number of ``neurons`` is not ``by``, or see `split_neuron`.
        TypeError: see `split_neuron`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> widen(model, "0", by=6)
        >>> model[0].weight.shape, model[2].weight.shape
        (torch.Size([10, 3]), torch.Size([2, 10]))
    """
    widen_layers(model, layer, by, ratio, neurons, next_layer)


def widen_layers(
    model: nn.Module,
    layer: str | nn.Module | Sequence[str | nn.Module],
    by: int,
    ratio: float,
    neurons: Sequence[int] | None = None,
    next_layer: str | nn.Module | None = None,
) -> list[tuple[HiddenLayer, list[int]]]:
    """Do what `widen` does; return every layer with its split neurons, in the order of the splits."""
    by = require_whole("by", by, more=", the neurons to add")
    check_ratio(ratio)
    layers = find_hidden_layers(model, layer, next_layer)
    if neurons is not None and len(neurons) != by:
        raise ValueError(f"neurons has {len(neurons)} entries and by={by}: name one neuron to split for each new one.")
    for hidden in layers:
        for neuron in neurons or ():
            check_neuron(hidden, neuron)
    splits: list[tuple[HiddenLayer, list[int]]] = []
    for hidden in layers:
        splits.append((hidden, list(neurons or ())))
        if neurons is not None:
            split_hidden(hidden, neurons, ratio)
        remaining = 0 if neurons is not None else by
        while remaining:
            largest = hidden.fan_out.double().norm(dim=0).argsort(descending=True, stable=True)[:remaining].tolist()
            split_hidden(hidden, largest, ratio)
            splits[-1][1].extend(largest)
            remaining -= len(largest)
    update_config(model, layers)
    return splits


@torch.no_grad()
def merge_duplicates(
    model: nn.Module,
    layer: str | nn.Module | Sequence[str | nn.Module] | None = None,
    *,
    tolerance: float = 0.0,
    next_layer: str | nn.Module | None = None,
) -> int:
    """Merge neurons with the same incoming weights and bias.

    Their outgoing weights are added.

    This is the inverse of `split_neuron`. The model is changed in place and gets new parameters, as there.

    Args:
        model: any module with linear layers; not wrapped, quantized or sharded.
        layer: one layer, several, or a name with ``*``; None: all that can be recognized.
        tolerance: incoming weights count as equal if they differ by at most this times the larger norm. With 0, the
            function is kept up to rounding; with more, only approximately.
        next_layer: see `split_neuron`; for a single layer.

    Returns:
        The number of removed neurons.

    Raises:
        ValueError: the tolerance is negative, or see `split_neuron`.
        TypeError: see `split_neuron`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> widen(model, "0", by=6)
        >>> merge_duplicates(model), model[0].weight.shape
        (6, torch.Size([4, 3]))
    """
    tolerance = require_number("tolerance", tolerance, 0)
    layers = list(all_hidden_layers(model)) if layer is None else find_hidden_layers(model, layer, next_layer)
    if layer is None:
        layers = [find_hidden_layer(model, hidden.names[0]) for hidden in layers]
    before = sum(hidden.width for hidden in layers)
    changed = [hidden for hidden in layers if _merge(hidden, tolerance)]
    if changed:
        update_config(model, changed)
    return before - sum(hidden.width for hidden in layers)


def split_fan_out(fan_out: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Return ``ratio * v`` and the rest, which add up to v.

    The sum is as exact as the precision of v allows.
    """
    first = (fan_out.double() * ratio).to(fan_out.dtype)
    return first, (fan_out.double() - first.double()).to(fan_out.dtype)


def split_hidden(hidden: HiddenLayer, neurons: Sequence[int], ratio: float) -> None:
    """Split neurons one after the other.

    A neuron that is named twice is split twice.
    """
    columns = list(hidden.fan_out.unbind(dim=1))
    for neuron in neurons:
        columns[neuron], rest = split_fan_out(columns[neuron], ratio)
        columns.append(rest)
    hidden.rewrite(torch.tensor([*range(hidden.width), *neurons]), torch.stack(columns, dim=1))


def _merge(hidden: HiddenLayer, tolerance: float) -> bool:
    """Merge equal neurons; return True if there were any."""
    fan_out = hidden.fan_out
    kept, groups = _equal_rows(hidden.fan_in, tolerance)
    if len(kept) == hidden.width:
        return False
    merged = torch.zeros(len(fan_out), len(kept), dtype=torch.float64, device=fan_out.device)
    merged.index_add_(1, torch.tensor(groups, device=fan_out.device), fan_out.double())
    hidden.rewrite(torch.tensor(kept), merged)
    return True


def _equal_rows(rows: Tensor, tolerance: float) -> tuple[list[int], list[int]]:
    """Return the first row of each group, and the group number of every row."""
    rows = rows.double().cpu()
    norms = rows.norm(dim=1)
    groups: dict[bytes, int] = {}
    kept: list[int] = []
    group_of_row = []
    for k, row in enumerate(rows):
        key = (row + 0.0).numpy().tobytes()  # -0.0 becomes 0.0
        if key not in groups:
            similar = _first_similar(rows, norms, kept, k, tolerance) if tolerance and kept else None
            groups[key] = len(kept) if similar is None else similar
            if similar is None:
                kept.append(k)
        group_of_row.append(groups[key])
    return kept, group_of_row


def _first_similar(rows: Tensor, norms: Tensor, kept: list[int], k: int, tolerance: float) -> int | None:
    """Return the number of the first kept row within the tolerance of row k.

    Norms rule out most rows.
    """
    allowed = tolerance * torch.maximum(norms[kept], norms[k])
    for candidate in ((norms[kept] - norms[k]).abs() <= allowed).nonzero().flatten().tolist():
        if (rows[kept[candidate]] - rows[k]).norm() <= allowed[candidate]:
            return int(candidate)
    return None


def check_ratio(ratio: float) -> None:
    """Refuse a ratio that is not finite."""
    require_number("ratio", ratio)
