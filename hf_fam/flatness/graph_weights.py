"""Item weights of a loss, read off the autograd graph above its log-softmax or its sigmoid cross-entropy.

A loss that is linear in the log-probabilities, ``L = -sum_ik t_ik log p_ik``, has the item weights
``c_i = sum_k t_ik``, minus the sum of its gradient by them. The gradient by the logits, ``c_i p_i - t_i``, gives c only
until the other probabilities underflow. The weights here are exact for the most confident rows, too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from ..calculus.autograd_graph import TailGraph, inputs_of
from ..calculus.torch_internals import is_over_last_dimension, saved

_LOG_SOFTMAX, _SIGMOID_LOSS = "LogSoftmaxBackward", "BinaryCrossEntropyWithLogitsBackward"


def softmax_weights(loss: Tensor, logits: Tensor, graph: TailGraph, *, create_graph: bool = False) -> Tensor | None:
    """Return the item weights c above all log-softmaxes of some logits, shape ``(...)``.

    They are those of the loss if it is linear in the log-probabilities and the logits reach the log-softmax unchanged.
    The caller checks that.

    Args:
        loss: a scalar in the graph.
        logits: z, shape ``(..., C)``.
        graph: the operations between them.
        create_graph: keep c in the graph, for weights that are trained.

    Returns:
        None without a log-softmax.

    Examples:
        >>> import torch
        >>> z = torch.tensor([[200.0, 0.0], [0.0, 0.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(z, torch.tensor([0, 1]))
        >>> softmax_weights(loss, z, TailGraph(loss, [z]))
        tensor([0.5000, 0.5000])
    """
    total = None
    for node in graph.above([logits]):
        if node.name().startswith(_LOG_SOFTMAX):
            (gradient,) = torch.autograd.grad(
                loss, [GradientEdge(node, 0)], retain_graph=True, create_graph=create_graph
            )
            log_p: Tensor = saved(node, "result")
            if not is_over_last_dimension(node):
                return None
            c = -gradient.sum(-1, keepdim=True)
            # Only the entry of the most probable class is certainly not masked below the log-softmax.
            rows = torch.zeros_like(log_p).scatter(-1, log_p.argmax(-1, keepdim=True), 1.0) * c
            weights = _pull_back(rows, node, logits, create_graph).sum(-1)
            total = weights if total is None else total + weights
    return total


def sigmoid_weights(loss: Tensor, logits: Tensor, graph: TailGraph, *, create_graph: bool = False) -> Tensor | None:
    """Return the weights c of a loss whose curvature is ``c p (1 - p)``, the shape of the logits.

    Args:
        loss: a scalar in the graph.
        logits: z.
        graph: the operations between them.
        create_graph: keep c in the graph, for weights that are trained.

    Returns:
        None without torch's sigmoid cross-entropy.

    Examples:
        >>> import torch
        >>> z, y = torch.tensor([100.0, -3.0], requires_grad=True), torch.tensor([1.0, 1.0])
        >>> loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(3.0))
        >>> sigmoid_weights(loss, z, TailGraph(loss, [z]))  # 3 / 2 each
        tensor([1.5000, 1.5000])
    """
    total = None
    for node in graph.above([logits]):
        if node.name().startswith(_SIGMOID_LOSS):
            (gradient,) = torch.autograd.grad(
                loss, [GradientEdge(node, 0)], retain_graph=True, create_graph=create_graph
            )
            targets, weight, pos_weight = (saved(node, name) for name in ("target", "weight", "pos_weight"))
            c = torch.ones_like(targets) if pos_weight is None else pos_weight * targets + 1 - targets
            c = gradient * (c if weight is None else c * weight)
            if saved(node, "reduction") == 1:  # the mean
                c = c / targets.numel()
            weights = _pull_back(c, node, logits, create_graph)
            total = weights if total is None else total + weights
    return total


def has_sigmoid_loss(logits: Tensor, graph: TailGraph) -> bool:
    """Return True if torch's sigmoid cross-entropy lies above the logits."""
    return any(node.name().startswith(_SIGMOID_LOSS) for node in graph.above([logits]))


def _pull_back(c: Tensor, node: Node, logits: Tensor, create_graph: bool) -> Tensor:
    """Return values at a node's input as values at the logits that the input was made from."""
    ((below, number), *_) = inputs_of(node)
    assert below is not None
    # In half precision, equal weights stay exact if the largest is 1.
    largest = c.detach().abs().amax()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    (pulled_back,) = torch.autograd.grad(
        [GradientEdge(below, number)], [logits], [c / scale], retain_graph=True, create_graph=create_graph
    )
    return pulled_back.to(c.dtype) * scale
