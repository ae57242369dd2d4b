"""Recognize softmax cross-entropy in the autograd graph, without computing anything."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import Node

from ..calculus.autograd_graph import TailGraph, inputs_of, top_of
from ..calculus.torch_internals import dimension, is_over_last_dimension, saved

# Nodes that only select, reorder or convert entries, and nodes that are linear in their one input from the logits.
_RESHAPING = {"View", "UnsafeView", "ReshapeAlias", "Slice", "Select", "Index", "ToCopy", "Clone", "Squeeze",
              "Unsqueeze", "Alias"}  # fmt: skip
_LINEAR = _RESHAPING | {"Mul", "Div", "Neg", "Sum", "Mean", "Add", "Sub"}


def is_cross_entropy(loss: Tensor, logits: Tensor, graph: TailGraph | None = None) -> bool:
    """Return True if the graph shows softmax cross-entropy with hard labels.

    The graph must be one chain of nodes: reshaping, ``log_softmax`` over the classes, ``nll_loss``, then linear nodes.
    Along the chain the following holds, so that the gradient of a row is ``c (p - onehot)`` with ``c >= 0`` in all rows
    or ``c <= 0`` in all rows:

    - Every row is used at most once: rows are indexed by masks, not by numbers.
    - Every row stays whole: no class is selected, and no view cuts a row.
    - Factors of single rows do not exist, because they may differ in sign; class weights are not negative.
    - Factors are constants. A factor that is trained would need a gradient by the term.

    Other terms of the loss may not depend on the logits. False is no proof: the loss may compute cross-entropy in other
    ways.

    Args:
        loss: a scalar in the graph.
        logits: z, shape ``(..., C)``, in the graph and not a leaf.
        graph: the operations between them, if they are known already.

    Examples:
        >>> import torch
        >>> z, y = 2 * torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
        >>> cross_entropy = torch.nn.functional.cross_entropy
        >>> is_cross_entropy(cross_entropy(z, y) / 3, z), is_cross_entropy(cross_entropy(z, y, label_smoothing=0.1), z)
        (True, False)
    """
    previous = top_of(logits)
    if previous is None:
        return False
    expected = _RESHAPING
    has_softmax = has_labels = False
    graph = graph or TailGraph(loss, [logits])
    for node in graph.above([logits]):
        inputs = [child for child, _ in inputs_of(node)]
        name = type(node).__name__.partition("Backward")[0]
        if inputs.count(previous) != 1 or (name == "Div" and inputs[0] is not previous):
            return False
        if name in ("Mul", "Div") and not _has_constant_scalar(node, previous):
            return False
        if not has_softmax and not _keeps_rows(node, logits.shape[-1]):
            return False
        if name == "LogSoftmax" and not has_softmax and _is_over_classes(node, logits.shape[-1]):
            has_softmax, expected = True, _RESHAPING
        elif name in ("NllLoss", "NllLoss2D") and has_softmax and not has_labels and _has_no_negative_weight(node):
            has_labels, expected = True, _LINEAR
        elif name not in expected:
            return False
        previous = node
    return previous is graph.top and has_labels


def _is_over_classes(log_softmax: Node, classes: int) -> bool:
    result: Tensor = saved(log_softmax, "result")
    return result.shape[-1] == classes and is_over_last_dimension(log_softmax)


def _has_constant_scalar(node: Node, previous: Node) -> bool:
    """Return True if a product or quotient has one constant number beside the chain."""
    (first, _), *others = inputs_of(node)
    if any(child not in (None, previous) for child in (first, *(child for child, _ in others))):
        return False  # it is trained
    constant = saved(node, "other" if first is previous or not others else "self")
    return not isinstance(constant, Tensor) or constant.numel() == 1


def _keeps_rows(node: Node, classes: int) -> bool:
    """Return True if a reshaping node below the softmax keeps every row whole, in its order, at most once.

    Its input then ends in the dimension of the classes. The softmax checks this for its own input.
    """
    sizes = saved(node, "self_sym_sizes")
    if sizes is not None and tuple(sizes)[-1:] != (classes,):
        return False
    indices = saved(node, "indices")
    if indices is None:
        return not node.name().startswith("SelectBackward") or dimension(saved(node, "dim")) not in (len(sizes) - 1, -1)
    # Masks select every row at most once.
    return len(sizes) > sum(_dimensions_of(mask) for mask in indices) and all(
        mask is None or mask.dtype is torch.bool for mask in indices
    )


def _dimensions_of(mask: Tensor | None) -> int:
    """Return how many dimensions an index stands for."""
    return mask.dim() if mask is not None and mask.dtype is torch.bool else 1


def _has_no_negative_weight(nll_loss: Node) -> bool:
    weight: Tensor | None = saved(nll_loss, "weight")
    return weight is None or not bool((weight < 0).any())
