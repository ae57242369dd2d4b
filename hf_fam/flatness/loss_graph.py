"""Tell from the autograd graph alone whether a loss is softmax cross-entropy: nothing is computed."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import Node

from ..calculus.autograd_graph import TailGraph
from ..calculus.torch_internals import saved

# Nodes that only pick, order or convert entries, and nodes that are linear in the one input that leads to the logits.
_SHAPES = {"View", "UnsafeView", "ReshapeAlias", "Slice", "Select", "Index", "ToCopy", "Clone", "Squeeze", "Unsqueeze",
           "Alias"}  # fmt: skip
_LINEAR = _SHAPES | {"Mul", "Div", "Neg", "Sum", "Mean", "Add", "Sub"}


def is_cross_entropy(loss: Tensor, logits: Tensor, graph: TailGraph | None = None) -> bool:
    """Whether the graph itself shows softmax cross-entropy with hard labels and weights that do not depend on z.

    That is one chain of nodes: shapes, ``log_softmax`` over the classes, ``nll_loss``, and what is linear. Other terms
    may be added to the loss if they do not depend on the logits. False proves nothing: a loss may be written otherwise.

    Args:
        loss: scalar, in the graph.
        logits: z, shape ``(..., C)``, in the graph and no leaf.
        graph: what lies between them, where it was walked already.

    Examples:
        >>> import torch
        >>> z, y = 2 * torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
        >>> cross_entropy = torch.nn.functional.cross_entropy
        >>> is_cross_entropy(cross_entropy(z, y) / 3, z), is_cross_entropy(cross_entropy(z, y, label_smoothing=0.1), z)
        (True, False)
    """
    if logits.grad_fn is None:
        return False
    below: Node = logits.grad_fn
    expected = _SHAPES
    seen_softmax = False
    graph = graph or TailGraph(loss, [logits])
    for node in graph.above([logits]):
        inputs = [child for child, _ in node.next_functions]
        name = type(node).__name__.partition("Backward")[0]
        if inputs.count(below) != 1 or (name == "Div" and inputs[0] is not below):
            return False
        if name == "LogSoftmax" and not seen_softmax and _over_classes(node, logits.shape[-1]):
            seen_softmax, expected = True, _SHAPES
        elif name in ("NllLoss", "NllLoss2D") and seen_softmax and expected is _SHAPES:
            expected = _LINEAR
        elif name not in expected:
            return False
        below = node
    return below is loss.grad_fn and expected is _LINEAR


def _over_classes(log_softmax: Node, classes: int) -> bool:
    result: Tensor = saved(log_softmax, "result")
    dim: int = saved(log_softmax, "dim")
    # torch gives a negative dimension back as an unsigned number.
    return result.shape[-1] == classes and dim in (result.dim() - 1, -1, 2**64 - 1)
