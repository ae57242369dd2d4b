"""Change weights without changing the function of the network.

In ReLU networks, ``relu(c x) = c relu(x)`` for c > 0. So the outputs of one layer can be multiplied by positive
numbers, neuron by neuron, if the next layer's columns are divided by them. kappa does not change if these are the
*outputs* of its layer, or if all its features get one factor. Tr H, lambda_max and ||W|| change arbitrarily (Dinh et
al. 2017, arXiv 1703.04933; Petzka et al. 2021, section 3).

`find_pairs` runs the model to find what can be exchanged:

- layers with ReLU, LeakyReLU, pooling, dropout or flattening behind them,
- batch normalizations, whose weight and bias take the factors, in training mode too,
- LayerNorm and RMSNorm where only layers read them,
- values against outputs of attention,
- ``up`` against ``down`` of a SwiGLU block.

The layer *before* a batch normalization can be scaled as well, in evaluation mode, with the running statistics
(`scale_before_norm`).

These are refused, with the reason:

- GELU, SiLU, tanh and softmax between the layers, which are not homogeneous,
- a residual connection, whose other branch would need the same factors,
- LayerNorm from below, which divides the factor out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .neuron_weights import BATCH_NORMS
from .rescaling import (
    NotInvariantError,
    check_factors,
    check_names,
    count_outputs,
    divide_columns,
    keep_function,
    multiply_outputs,
)
from .rescaling_pairs import Pair, find_pairs

__all__ = [
    "NotInvariantError",
    "Pair",
    "find_pairs",
    "fold_feature_deviations",
    "rescale_between",
    "rescale_randomly",
    "scale_before_norm",
]


def rescale_between(
    model: nn.Module,
    first: str,
    second: str | Sequence[str],
    factors: Tensor | float,
    example: Any,
    *,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> None:
    """Multiply a module's outputs by factors and divide its readers' columns.

    The factors are positive.

    The function is compared before and after. If it changed, the weights are restored.

    Args:
        model: changed in place.
        first: name of a linear or convolution layer, or of a normalization with weight and bias.
        second: names of all layers that read its outputs; each must be a linear or convolution layer.
        factors: one number for every output of ``first``, or one for all; positive.
        example: inputs to compare with: a tensor, or a dictionary of arguments.
        forward: ``forward(model, example)`` returns a tensor; by default the output, or its logits.

    Raises:
        NotInvariantError: the function would change by more than 1e-6 of its size in float64 or 1e-5 in float32. In
            half precision: by more than 4 units of rounding, 0.004 in float16 and 0.03 in bfloat16.
        ValueError: a name or a factor cannot be used.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> rescale_between(model, "0", "2", 100.0, torch.randn(4, 3))
        >>> model[1] = nn.Tanh()
        >>> rescale_between(model, "0", "2", 100.0, torch.randn(4, 3))
        Traceback (most recent call last):
        ...
        hf_fam.landscape.rescaling.NotInvariantError: rescaling '0' against '2' changes the function by ...
    """
    modules = dict(model.named_modules())
    readers = [second] if isinstance(second, str) else list(second)
    check_names(model, (first, *readers))
    count = count_outputs(first, modules[first])
    c = check_factors(factors, first, count)
    with keep_function(model, example, forward, f"rescaling '{first}' against {', '.join(map(repr, readers))}"):
        multiply_outputs(modules[first], c)
        for name in readers:
            divide_columns(name, modules[name], c)


def rescale_randomly(
    model: nn.Module,
    example: Any,
    *,
    spread: float = 1.0,
    neuron_wise: bool = True,
    seed: int = 0,
    forward: Callable[[nn.Module, Any], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Rescale all pairs of a model by random factors; keep the function.

    Args:
        model: changed in place.
        example: inputs to compare the function with.
        spread: factors are ``10 ** u`` with u uniform in ``[-spread, spread]``.
        neuron_wise: a factor for every neuron; otherwise one for every layer.
        seed: seed of the factors. The global random state is not used.
        forward: see `rescale_between`.

    Returns:
        The factors of every pair, by the name of its first module.

    Raises:
        NotInvariantError: there is no such pair, or the function would change.
        ValueError: ``spread`` is not positive.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> sorted(rescale_randomly(model, torch.randn(4, 3), spread=2.0))
        ['0']
    """
    if not (spread > 0 and math.isfinite(spread)):
        raise ValueError(f"spread={spread!r}: give a positive number, such as 1.0 for factors from 0.1 to 10.")
    pairs = find_pairs(model, example, forward=forward)
    if not pairs:
        raise NotInvariantError(
            f"{type(model).__name__} has no module whose outputs can be rescaled. "
            "GELU, SiLU, tanh and softmax are not homogeneous, and residual connections tie the scales of their "
            "branches."
        )
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for pair in pairs:
        count = pair.neurons if neuron_wise else 1
        exponents = spread * (2 * torch.rand(count, generator=generator, dtype=torch.float64) - 1)
        factors[pair.first] = (10**exponents).expand(pair.neurons).clone()
    modules = dict(model.named_modules())
    with keep_function(model, example, forward, "random rescaling"):
        for pair in pairs:
            multiply_outputs(modules[pair.first], factors[pair.first])
            for name in pair.readers:
                divide_columns(name, modules[name], factors[pair.first])
    return factors


def scale_before_norm(model: nn.Module, layer: str, norm: str, factors: Tensor | float, example: Any) -> None:
    """Multiply the outputs of a layer in front of a batch normalization.

    The batch normalization takes the factors out again.

    Exact in evaluation mode: the running mean is multiplied by c, and the running variance v becomes
    ``c^2 (v + eps) - eps``. In training mode the function changes by the order of eps / v.

    Args:
        model: changed in place.
        layer: name of the layer.
        norm: name of the batch normalization that reads it.
        factors: positive, one for every output or one for all.
        example: inputs to compare with.

    Raises:
        NotInvariantError: a variance would become negative, or the function would change.
        ValueError: ``norm`` is not a batch normalization with running statistics, or a name or factor cannot be used.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
        >>> x = torch.randn(2, 4)
        >>> before = model(x)
        >>> scale_before_norm(model, "0", "1", 10.0, x)
        >>> torch.allclose(model(x), before, atol=1e-5)
        True
    """
    modules = dict(model.named_modules())
    check_names(model, (layer, norm))
    target = modules[norm]
    if not isinstance(target, BATCH_NORMS) or target.running_mean is None or target.running_var is None:
        raise ValueError(f"'{norm}' is a {type(target).__name__}: give a batch normalization with running statistics.")
    outputs = count_outputs(layer, modules[layer])
    if outputs != target.num_features:
        raise ValueError(
            f"'{layer}' has {outputs} outputs and '{norm}' {target.num_features} features: name the layer that "
            "the normalization reads."
        )
    c = check_factors(factors, layer, target.num_features).to(target.running_var)
    variance = c.square() * (target.running_var + target.eps) - target.eps
    if not bool((variance >= 0).all()):
        raise NotInvariantError(
            f"a factor of {float(c.min()):g} makes a running variance of '{norm}' smaller than its eps={target.eps:g}."
        )
    with keep_function(model, example, None, f"scaling '{layer}' before '{norm}'"), torch.no_grad():
        multiply_outputs(modules[layer], c)
        target.running_mean.mul_(c)
        target.running_var.copy_(variance)


def fold_feature_deviations(model: nn.Module, first: str, second: str, deviations: Tensor, example: Any) -> None:
    """Give every feature of ``second`` unit deviation; keep the function.

    The weights of ``first`` take the deviations.

    kappa of ``second`` is then the former result of ``measure_relative_flatness(normalize_features=True)``, except for
    features that are constant over the data.

    Args:
        model: changed in place.
        first: the module that makes the features, with ReLU or the like behind it.
        second: the layer that reads them.
        deviations: standard deviation of every feature (channel) over the data; 0 counts as 1.
        example: inputs to compare the function with.

    Raises:
        NotInvariantError: the function would change.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> x = torch.randn(100, 4)
        >>> deviations = model[:2](x).std(0)
        >>> fold_feature_deviations(model, "0", "2", deviations, x)
        >>> torch.allclose(model[:2](x).std(0)[deviations > 0], torch.ones(int((deviations > 0).sum())))
        True
    """
    rescale_between(
        model, first, second, 1 / torch.where(deviations > 0, deviations, torch.ones_like(deviations)), example
    )
