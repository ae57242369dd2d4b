"""First derivatives whose own derivatives stay precise where a softmax or a sigmoid of the loss is saturated.

torch's derivative of cross-entropy by the logit of a most probable class is ``p - 1``, and of a sigmoid ``y (1 - y)``.
Both are differences of equal numbers in confident rows. Here, the entry of a softmax's top class is minus the sum of
the others. A sigmoid is computed on the side where it is small.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

from .autograd_graph import kind_of, loss_nodes
from .derivatives import gradients, wide
from .torch_internals import dimension, saved

# Derivatives of the gradient by a node's result.
_Derivative = Callable[[Node, Tensor], Tensor | None]


def first_derivatives(loss: Tensor, inputs: Sequence[Tensor], scale: Tensor | float = 1.0) -> list[Tensor]:
    """Return `gradients` of a loss, to be differentiated again, precise in confident rows.

    Args:
        loss: a scalar in the graph.
        inputs: the tensors to differentiate by.
        scale: see `gradients`.

    Examples:
        >>> z = torch.tensor([[40.0, 0.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(z, torch.tensor([0]))
        >>> first_derivatives(loss, [z])[0].detach()  # -exp(-40) and exp(-40)
        tensor([[-4.2484e-18,  4.2484e-18]])
    """
    with _precise_nodes(loss):
        return gradients(loss, inputs, scale)


@contextlib.contextmanager
def _precise_nodes(loss: Tensor) -> Iterator[None]:
    """Replace the derivatives of softmax and sigmoid functions between a loss and the layers below it."""
    hooks = [
        node.register_hook(_replacement(node, derivative))
        for node in loss_nodes(loss)
        if (derivative := _DERIVATIVES.get(kind_of(node))) is not None
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _replacement(node: Node, derivative: _Derivative) -> Callable[..., tuple[Tensor | None, ...] | None]:
    """Return a hook that replaces the derivative by a node's first input."""

    def hook(by_inputs: tuple[Tensor | None, ...], by_outputs: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        first, v = by_inputs[0], by_outputs[0]
        if first is None or v is None:
            return by_inputs
        precise = derivative(node, v.to(wide(v.dtype)))
        return by_inputs if precise is None else (precise.to(first.dtype), *by_inputs[1:])

    return hook


def _of_log_softmax(node: Node, v: Tensor) -> Tensor:
    dim = dimension(saved(node, "dim"))
    p = saved(node, "result").to(v.dtype).exp()
    return _from_others(v - v.sum(dim, keepdim=True) * p, _Top(p, dim))


def _of_softmax(node: Node, v: Tensor) -> Tensor:
    dim = dimension(saved(node, "dim"))
    p = saved(node, "result").to(v.dtype)
    top = _Top(p, dim)
    v = v - torch.where(top.is_sure, v.gather(dim, top.index), 0.0)  # changes nothing
    return _from_others(p * (v - (p * v).sum(dim, keepdim=True)), top)


def _of_logsumexp(node: Node, v: Tensor) -> Tensor | None:
    if len(dims := saved(node, "dim")) != 1:
        return None
    dim, z, result = dimension(dims[0]), saved(node, "self").to(v.dtype), saved(node, "result").to(v.dtype)
    if not saved(node, "keepdim"):
        v, result = v.unsqueeze(dim), result.unsqueeze(dim)
    p = (z - result).exp()
    return v * _from_others(p, _Top(p, dim), total=1.0)


def _of_sigmoid_cross_entropy(node: Node, v: Tensor) -> Tensor:
    z, t = saved(node, "self").to(v.dtype), saved(node, "target").to(v.dtype)
    weight, positive_weight = saved(node, "weight"), saved(node, "pos_weight")
    of_ones = t if positive_weight is None else t * positive_weight
    both, small = 1 - t + of_ones, _smaller_sigmoid(z)
    derivative = torch.where(z > 0, 1 - t - both * small, both * small - of_ones)
    if saved(node, "reduction") == 1:  # the mean
        v = v / z.numel()
    return v * derivative if weight is None else v * weight * derivative


def _of_log_sigmoid(node: Node, v: Tensor) -> Tensor:
    z = saved(node, "self").to(v.dtype)
    small = _smaller_sigmoid(z)
    return v * torch.where(z > 0, small, 1 - small)


def _of_softplus(node: Node, v: Tensor) -> Tensor:
    z = saved(node, "self").to(v.dtype) * saved(node, "beta")
    small = _smaller_sigmoid(z)
    is_linear = z > saved(node, "threshold")
    return v * torch.where(is_linear, torch.ones_like(small), torch.where(z > 0, 1 - small, small))


_DERIVATIVES: dict[str, _Derivative] = {
    "LogSoftmax": _of_log_softmax,
    "Softmax": _of_softmax,
    "Logsumexp": _of_logsumexp,
    "BinaryCrossEntropyWithLogits": _of_sigmoid_cross_entropy,
    "LogSigmoid": _of_log_sigmoid,
    "Softplus": _of_softplus,
}


class _Top:
    """The most probable class of every row.

    Args:
        p: probabilities.
        dim: the dimension of the classes.

    Attributes:
        index: number of the class, with ``dim`` of size 1.
        is_sure: whether its probability is above 1/2, where its own entries lose digits; elsewhere those of the other
            classes do.
    """

    def __init__(self, p: Tensor, dim: int) -> None:
        self.dim = dim
        largest, self.index = p.detach().max(dim, keepdim=True)
        self.is_sure = largest > 0.5


def _from_others(entries: Tensor, top: _Top, total: float = 0.0) -> Tensor:
    """Return entries with a known sum; that of a class that is sure is computed from the other ones."""
    others = entries.scatter(top.dim, top.index, 0.0)
    rest = total - others.sum(top.dim, keepdim=True)
    return others.scatter(top.dim, top.index, torch.where(top.is_sure, rest, entries.gather(top.dim, top.index)))


def _smaller_sigmoid(z: Tensor) -> Tensor:
    """Return ``sigmoid(-|z|)``, differentiable at 0."""
    return torch.where(z > 0, -z, z).sigmoid()
