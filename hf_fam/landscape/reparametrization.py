"""Change weights without changing the function of the network.

ReLU networks: ``relu(c x) = c relu(x)`` for c > 0, so the outputs of one layer can be multiplied by positive numbers,
neuron by neuron, if the next layer's columns are divided by them. kappa does not change if these are the *outputs* of
its layer, or if all its features get one factor. Tr H, lambda_max and ||W|| change arbitrarily (Dinh et al. 2017, arXiv
1703.04933; Petzka et al. 2021, section 3).

Supported:

- Linear and convolution layers with ReLU, LeakyReLU, pooling, dropout, flattening or nothing between them:
  `find_pairs` finds the pairs in models that torch.fx can trace, `rescale_randomly` rescales them.
- A batch normalization behind the first layer: its own weight and bias take the factors, in training mode too. The
  layer *before* it can be scaled as well, in evaluation mode, with the running statistics (`scale_before_norm`).
- LayerNorm and RMSNorm: their weight and bias take the factors where every layer that reads them divides
  (`rescale_between` with several readers). Attention: value rows against output columns (per head), and gate-less
  products such as ``up`` against ``down`` of a SwiGLU block, where nothing but a product stands between.

Refused, with the reason: GELU, SiLU, tanh and softmax between the layers, which are not homogeneous; a residual
connection, whose other branch would need the same factors; LayerNorm from below, which divides the factor out again, so
that the layer above must not divide.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = [
    "NotInvariantError",
    "Pair",
    "find_pairs",
    "fold_feature_deviations",
    "rescale_between",
    "rescale_randomly",
    "scale_before_norm",
]

TOLERANCE = 1e-6

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_HOMOGENEOUS_MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.Flatten,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_HOMOGENEOUS_FUNCTIONS = {
    "relu", "leaky_relu", "dropout", "flatten", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d",
}  # fmt: skip
_HOMOGENEOUS_METHODS = ("relu", "relu_", "flatten", "view", "reshape", "mean", "contiguous")


class NotInvariantError(ValueError):
    """The change would alter the function; nothing was changed."""


@dataclass(frozen=True)
class Pair:
    """Two modules whose scales can be exchanged.

    Attributes:
        first: name of the module whose outputs are multiplied: a layer, or the normalization behind it.
        second: name of the layer whose columns are divided.
        layer: name of the layer that makes the outputs; ``first`` itself, unless a normalization follows.
        neurons: number of factors.
    """

    first: str
    second: str
    layer: str
    neurons: int


def find_pairs(model: nn.Module) -> list[Pair]:
    """Return all pairs of consecutive layers whose scales can be exchanged.

    They are in the order of the computation.

    Args:
        model: a model that torch.fx can trace.

    Raises:
        NotInvariantError: the model cannot be traced. Name the layers in `rescale_between`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> [(pair.first, pair.second) for pair in find_pairs(model)]  # not through tanh
        [('0', '2')]
    """
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # of any kind: control flow that depends on values
        raise NotInvariantError(
            f"torch.fx cannot trace the layers of {type(model).__name__} ({str(error).splitlines()[0]}): name the "
            "layers in rescale_between(model, first, [second], ...)."
        ) from error
    modules = dict(model.named_modules())
    pairs = []
    for node in graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _WEIGHTED):
            pair = _find_pair(node, module, modules)
            if pair is not None:
                pairs.append(pair)
    called = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    return [p for p in pairs if called.count(p.first) == called.count(p.second) == called.count(p.layer) == 1]


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
        NotInvariantError: the function would change by more than 1e-6 of its size in float64, 1e-5 in float32, or 4
            units of rounding in half precision (0.004 in float16, 0.03 in bfloat16).
        ValueError: a name or a factor cannot be used.

    Examples:
        >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> rescale_between(model, "0", "2", 100.0, torch.randn(4, 3))
        >>> model[1] = nn.Tanh()
        >>> rescale_between(model, "0", "2", 100.0, torch.randn(4, 3))
        Traceback (most recent call last):
        ...
        hf_fam.landscape.reparametrization.NotInvariantError: rescaling '0' against '2' changes the function by ...
    """
    modules = dict(model.named_modules())
    readers = [second] if isinstance(second, str) else list(second)
    _check_names(model, (first, *readers))
    count = _count_outputs(first, modules[first])
    c = _check_factors(factors, first, count)
    with keep_function(model, example, forward, f"rescaling '{first}' against {', '.join(map(repr, readers))}"):
        _multiply_outputs(modules[first], c)
        for name in readers:
            _divide_columns(name, modules[name], c)


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
    pairs = find_pairs(model)
    if not pairs:
        raise NotInvariantError(
            f"{type(model).__name__} has no two layers with only ReLU, pooling or similar operations between them: "
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
            _multiply_outputs(modules[pair.first], factors[pair.first])
            _divide_columns(pair.second, modules[pair.second], factors[pair.first])
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
    """
    modules = dict(model.named_modules())
    _check_names(model, (layer, norm))
    target = modules[norm]
    if not isinstance(target, _BATCH_NORMS) or target.running_mean is None or target.running_var is None:
        raise ValueError(f"'{norm}' is a {type(target).__name__}: give a batch normalization with running statistics.")
    outputs = _count_outputs(layer, modules[layer])
    if outputs != target.num_features:
        raise ValueError(
            f"'{layer}' has {outputs} outputs and '{norm}' {target.num_features} features: name the layer that "
            "the normalization reads."
        )
    c = _check_factors(factors, layer, target.num_features).to(target.running_var)
    variance = c.square() * (target.running_var + target.eps) - target.eps
    if not bool((variance >= 0).all()):
        raise NotInvariantError(
            f"a factor of {float(c.min()):g} makes a running variance of '{norm}' smaller than its eps={target.eps:g}."
        )
    with keep_function(model, example, None, f"scaling '{layer}' before '{norm}'"), torch.no_grad():
        _multiply_outputs(modules[layer], c)
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
    """
    rescale_between(
        model, first, second, 1 / torch.where(deviations > 0, deviations, torch.ones_like(deviations)), example
    )


@contextlib.contextmanager
def keep_function(
    model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Tensor] | None, change: str
) -> Iterator[None]:
    """Check that the block keeps the function; otherwise restore the weights.

    Args:
        model: compared in evaluation mode.
        example: inputs.
        forward: see `rescale_between`.
        change: description of the change, for the error.

    Raises:
        NotInvariantError: the outputs differ by more than `_tolerance` of the largest one.
    """
    saved = copy.deepcopy(model.state_dict())
    before = _evaluate(model, example, forward)
    try:
        yield
        after = _evaluate(model, example, forward)
    except BaseException:
        model.load_state_dict(saved)
        raise
    difference = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    if not difference <= _tolerance(before.dtype):
        model.load_state_dict(saved)
        raise NotInvariantError(
            f"{change} changes the function by {difference:.2g} of its size, so nothing was changed: an operation "
            "between them is not homogeneous (GELU, SiLU, tanh, softmax, a normalization from below), reads the "
            "features besides them (a residual connection), or ties several features (heads, rotary positions)."
        )


def _tolerance(dtype: torch.dtype) -> float:
    """Return the tolerated change, relative to the largest output."""
    if dtype in (torch.float16, torch.bfloat16):
        return 4 * torch.finfo(dtype).eps
    return TOLERANCE if dtype == torch.float64 else 10 * TOLERANCE


@torch.no_grad()
def _evaluate(model: nn.Module, example: Any, forward: Callable[[nn.Module, Any], Tensor] | None) -> Tensor:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        if forward is not None:
            return forward(model, example)
        output = model(**example) if isinstance(example, Mapping) else model(example)
    finally:
        for module, training in modes:
            module.training = training
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None:
        raise ValueError("the model returns no tensor and no logits: give forward=lambda model, example: ...")
    return logits


def _find_pair(node: fx.Node, module: nn.Module, modules: dict[str, nn.Module]) -> Pair | None:
    """Follow homogeneous operations from a layer to the next layer.

    Each operation must have one reader. None if there is no such layer.
    """
    layer, first = str(node.target), str(node.target)
    neurons = _count_outputs(layer, module)
    while len(node.users) == 1:
        node = next(iter(node.users))
        target = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(target, _BATCH_NORMS) and first == layer and target.affine:
            first = str(node.target)
        elif isinstance(target, _WEIGHTED):
            groups = getattr(target, "groups", 1)
            return Pair(first, str(node.target), layer, neurons) if groups == 1 else None
        elif not (isinstance(target, _HOMOGENEOUS_MODULES) or _is_homogeneous_call(node)):
            return None
    return None


def _is_homogeneous_call(node: fx.Node) -> bool:
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in _HOMOGENEOUS_FUNCTIONS
    return node.op == "call_method" and node.target in _HOMOGENEOUS_METHODS


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise ValueError(f"{name!r} is not a module of this {type(model).__name__}: see model.named_modules().")


def _check_factors(factors: Any, name: str, count: int) -> Tensor:
    """Return one factor for every output, in float64, shape ``(count,)``."""
    c = torch.as_tensor(factors, dtype=torch.float64)
    if c.shape not in ((), (count,)) or not bool((c > 0).all()) or not bool(c.isfinite().all()):
        raise ValueError(
            f"factors={factors!r}: factors must be {count} positive finite numbers, one for every output of '{name}', "
            "or a single one."
        )
    return c.expand(count)


def _count_outputs(name: str, module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    is_norm = isinstance(weight, Tensor) and weight.dim() == 1
    if isinstance(weight, Tensor) and (is_norm or isinstance(module, _WEIGHTED)):
        return weight.shape[0]
    raise ValueError(
        f"'{name}' is a {type(module).__name__}, whose outputs cannot be scaled by weights: name a linear or "
        "convolution layer, or a normalization with weight and bias."
    )


@torch.no_grad()
def _multiply_outputs(module: nn.Module, factors: Tensor) -> None:
    weight: Any = module.weight
    weight.mul_(factors.to(weight).view(-1, *[1] * (weight.dim() - 1)))
    bias: Any = getattr(module, "bias", None)
    if bias is not None:
        bias.mul_(factors.to(bias))


@torch.no_grad()
def _divide_columns(name: str, module: nn.Module, factors: Tensor) -> None:
    if not isinstance(module, _WEIGHTED) or getattr(module, "groups", 1) != 1:
        raise ValueError(f"'{name}' is a {type(module).__name__}: name a linear or an ungrouped convolution layer.")
    weight = module.weight
    c = factors.to(weight)
    columns = weight.shape[1]
    if columns % len(c):
        raise ValueError(
            f"'{name}' has {columns} inputs, not a multiple of {len(c)} factors: name the layer that reads the outputs."
        )
    # In a flattened image, all positions of a channel are adjacent.
    c = c.repeat_interleave(columns // len(c))
    weight.div_(c.view(1, -1, *[1] * (weight.dim() - 2)))
