"""Prove from the autograd graph that a loss is linear in the log-probabilities of its logits, and read its weights.

A loss ``L = -sum_ik t_ik log p_ik`` with constant t has the curvature of softmax cross-entropy with item weights
``c_i = sum_k t_ik``: minus the sum of its gradient by the log-probabilities. That is one short backward pass, and
exact for the most confident rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..calculus.autograd_graph import inputs_of, kind_of, top_of
from ..calculus.derivatives import wide
from ..calculus.torch_internals import is_over_last_dimension, saved

# Nodes that keep every entry in its row.
_VIEWS = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "ToCopy"}
_SUMS = {"Add", "Sub", "Rsub"}
# Nodes that are linear in their one input with a graph, sums in both; a quotient only in its numerator.
_LINEAR = _VIEWS | _SUMS | {
    "NllLoss", "NllLoss2D", "Mul", "Div", "Neg", "Sum", "Mean", "Slice", "Select", "Index", "Gather", "Clone",
    "MaskedFill", "Where", "Expand", "Transpose", "T", "Permute",
}  # fmt: skip


class LogProbabilities(NamedTuple):
    """Log-probabilities of which a loss is a linear function.

    Attributes:
        values: log p, shape ``(N, C)``, in float32 or wider. Its rows are those of the logits.
        node: the log-softmax in the graph.
    """

    values: Tensor
    node: Node


def find_log_probabilities(loss: Tensor, logits: Tensor) -> LogProbabilities | None:
    """Return the log-probabilities if the graph proves that the loss is a linear function of them.

    The graph must consist of views of the logits, one log-softmax over the classes, and linear nodes with constant
    factors above it. None is no proof of the contrary.

    Args:
        loss: a scalar in the graph.
        logits: z, shape ``(..., C)``, in the graph.

    Examples:
        >>> import torch
        >>> z, y = 2 * torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
        >>> cross_entropy = torch.nn.functional.cross_entropy
        >>> find_log_probabilities(cross_entropy(z, y) / 3, z).values.shape
        torch.Size([4, 3])
        >>> find_log_probabilities(cross_entropy(z, y).square(), z) is None
        True
    """
    found, end = find_log_softmax(loss), get_gradient_edge(logits).node
    node = found
    while node is not None and node is not end:
        below = [child for child, _ in inputs_of(node) if child is not None]
        if len(below) != 1 or (node is not found and kind_of(node) not in _VIEWS):
            return None
        node = below[0]
    if found is None or node is None:
        return None
    log_p: Tensor = saved(found, "result")
    if log_p.shape[-1] != logits.shape[-1] or log_p.numel() != logits.numel():
        return None
    if not _is_wide(found):  # the loss rounds its log-probabilities, but its weights are exact
        log_p = logits.to(wide(logits.dtype)).log_softmax(-1)
    return LogProbabilities(log_p.detach().reshape(-1, log_p.shape[-1]), found)


def find_log_softmax(loss: Tensor) -> Node | None:
    """Return the log-softmax if the graph proves that the loss is a linear function of its result alone.

    It is computed over the last dimension.

    Args:
        loss: a scalar in the graph.
    """
    if (top := top_of(loss)) is None:
        return None
    found, stack = {top}, [top]
    while stack:
        node = stack.pop()
        if kind_of(node) == "LogSoftmax":
            continue
        below = [child for child, _ in inputs_of(node) if child is not None]
        if not is_linear(node) or not below:
            return None
        stack.extend(child for child in below if child not in found)
        found.update(below)
    softmaxes = [node for node in found if kind_of(node) == "LogSoftmax"]
    return softmaxes[0] if len(softmaxes) == 1 and is_over_last_dimension(softmaxes[0]) else None


def is_linear(node: Node) -> bool:
    """Return True if a node is known to be a linear function of its inputs in the graph, up to a constant.

    Examples:
        >>> z = torch.ones(2, requires_grad=True)
        >>> is_linear((2 * z).grad_fn), is_linear((z * z).grad_fn), is_linear(z.exp().grad_fn)
        (True, False, False)
    """
    kind, inputs = kind_of(node), inputs_of(node)
    if kind == "Div" and inputs[0][0] is None:
        return False
    return kind in _LINEAR and (kind in _SUMS or sum(child is not None for child, _ in inputs) < 2)


def _is_wide(log_softmax: Node) -> bool:
    return saved(log_softmax, "result").dtype in (torch.float32, torch.float64)


def weights_of(loss: Tensor, log_probabilities: LogProbabilities, minus_one: Tensor | None = None) -> Tensor:
    """Return the item weights c of a loss that is linear in log-probabilities, shape ``(N,)``.

    Args:
        loss: a scalar in the graph.
        log_probabilities: result of `find_log_probabilities`.
        minus_one: -1 like the loss, if the caller keeps one.

    Examples:
        >>> import torch
        >>> z = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(z, torch.tensor([0, 1]))
        >>> weights_of(loss, find_log_probabilities(loss, z))
        tensor([0.5000, 0.5000])
    """
    edge = GradientEdge(log_probabilities.node, 0)
    minus_one = torch.full_like(loss, -1.0) if minus_one is None else minus_one
    (gradient,) = torch.autograd.grad(loss, [edge], minus_one, retain_graph=True)
    return gradient.sum(-1, dtype=wide(gradient.dtype)).flatten()


def curvature_product(logits: Tensor, item_weights: Tensor, vector: Tensor) -> Tensor:
    """Return ``c (diag p - p p^T) v``, in the graph, the shape of the logits.

    torch's second derivative of the log-softmax loses the entry of a most probable class t to cancellation. Here
    ``v - v_t`` replaces v, which changes nothing, and the entry is minus the sum of the others.

    Args:
        logits: z, shape ``(..., C)``.
        item_weights: c, shape ``(...)``, constant.
        vector: v, the shape of the logits.

    Examples:
        >>> z = torch.tensor([[40.0, 0.0, 0.0]])
        >>> curvature_product(z, torch.ones(1), torch.tensor([[1.0, 0.0, 0.0]]))  # 2 exp(-40) and twice -exp(-40)
        tensor([[ 8.4967e-18, -4.2484e-18, -4.2484e-18]])
    """
    z = logits.to(item_weights.dtype)
    top = z.detach().argmax(-1, keepdim=True)
    others = z.log_softmax(-1).exp().scatter(-1, top, 0.0)
    v = vector.to(z.dtype)
    v = v - v.gather(-1, top)
    product = item_weights.unsqueeze(-1) * others * (v - (others * v).sum(-1, keepdim=True))
    return product.scatter(-1, top, -product.sum(-1, keepdim=True))
