"""Estimate how much a loss rounds the curvature of confident rows.

The derivatives of hf_fam are precise there (calculus/saturation.py). What a loss computes itself is not. In float32
``1 - p`` of a focal loss is 0 once p is above 1 - 6e-8, and so is the derivative of a sigmoid.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..calculus.autograd_graph import children_of, kind_of, loss_nodes, top_of
from ..calculus.derivatives import wide
from ..calculus.torch_internals import dimension, saved
from .log_probabilities import is_linear

_DIFFERENCES = {"Sub", "Rsub", "Log1p"}

# The relative error from which there is a warning.
_LARGE_ERROR = 0.05


def warn_of_rounding(loss: Tensor, layer: str, *, has_values: bool) -> bool:
    """Warn that a loss rounds its curvature, and return True if it does.

    Args:
        loss: a scalar in the graph.
        layer: name of the layer, for the warning.
        has_values: see `rounding_of`.
    """
    if (error := rounding_of(loss, has_values=has_values)) < _LARGE_ERROR:
        return False
    warnings.warn(
        f"kappa of '{layer}' may be off by {error:.0%}: the model is sure of nearly all rows, and the loss rounds such "
        "rows. Give it logits.double() to be precise (docs/precision-and-compilation.md).",
        stacklevel=5,
    )
    return True


def rounding_of(loss: Tensor, *, has_values: bool) -> float:
    """Return the expected relative error of the curvature of a loss by rounding inside the loss; 0 if it is harmless.

    This waits for the device.

    Args:
        loss: a scalar in the graph.
        has_values: whether first derivatives by the logits matter as well as second ones, as for Hessian probes of a
            hidden layer.

    Examples:
        >>> z = torch.tensor([[14.0, 0.0]], requires_grad=True)
        >>> p = z.softmax(-1)[:, 0]
        >>> round(rounding_of(((1 - p) ** 2).mean(), has_values=False), 2)
        0.07
        >>> rounding_of(-p.log().mean(), has_values=False)
        0.0
    """
    nodes = loss_nodes(loss)
    differences = [node for node in _below_nonlinear(loss, nodes) if kind_of(node) in _DIFFERENCES]
    subtracted = _reachable(differences, nodes)
    uses_exp = any(kind_of(node) == "Exp" for node in subtracted)
    errors = [0.0]
    for node in nodes:
        kind, is_subtracted = kind_of(node), node in subtracted
        if kind == "Sigmoid":
            errors.append(_of_sigmoids(saved(node, "result")))
        elif kind == "Softmax" and is_subtracted:
            errors.append(_of_rows(saved(node, "result"), node))
        elif kind == "LogSoftmax" and is_subtracted and uses_exp:
            errors.append(_of_rows(saved(node, "result").detach().exp(), node))
        elif kind == "Logsumexp" and has_values and len(dims := saved(node, "dim")) == 1:
            z, result = saved(node, "self"), saved(node, "result")
            result = result if saved(node, "keepdim") else result.unsqueeze(dimension(dims[0]))
            errors.append(_of_rows((z - result).detach().exp(), node))
    return max(errors)


def _of_rows(p: Tensor, node: Node) -> float:
    """Return the rounding of ``1 - p`` at the most probable classes, relative to their sum."""
    dim = saved(node, "dim")
    dim = dimension(dim[0] if isinstance(dim, tuple) else dim)
    p = p.detach()
    others = p.scatter(dim, p.argmax(dim, keepdim=True), 0.0).sum(dim, dtype=wide(p.dtype))
    return _ratio(others.numel(), others.sum(), p.dtype)


def _of_sigmoids(p: Tensor) -> float:
    """Return the rounding of ``1 - p``, relative to the sum of ``p (1 - p)``."""
    x = p.detach().to(wide(p.dtype))
    return _ratio(int((x > 0.5).sum()), (x * (1 - x)).sum(), p.dtype)


def _ratio(numbers: int, total: Tensor, dtype: torch.dtype) -> float:
    error = numbers * torch.finfo(dtype).eps / 2
    return min(1.0, error / max(float(total), error)) if error else 0.0


def _below_nonlinear(loss: Tensor, nodes: Collection[Node]) -> set[Node]:
    """Return the nodes of which a loss is not a linear function."""
    top = top_of(loss)
    stack, linear, nonlinear = ([] if top is None else [top]), set[Node](), list[Node]()
    while stack:
        node = stack.pop()
        if node not in linear:
            linear.add(node)
            (stack if is_linear(node) else nonlinear).extend(children_of(node))
    return _reachable(nonlinear, nodes)


def _reachable(start: Iterable[Node], nodes: Collection[Node]) -> set[Node]:
    """Return the nodes of a loss among some and below them."""
    inside, seen = set(nodes), set[Node]()
    stack = [*start]
    while stack:
        node = stack.pop()
        if node in inside and node not in seen:
            seen.add(node)
            stack += children_of(node)
    return seen
