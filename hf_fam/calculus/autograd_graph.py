"""Questions about the autograd graph between the feature layer and the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.autograd.graph import Node

# Backward nodes of layers and of products of activations.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "BaddbmmBackward", "ConvolutionBackward", "LinearBackward")


def between(loss: Tensor, pre_activations: Sequence[Tensor]) -> Iterator[Node]:
    """Yield the nodes on a path from the loss down to z of any call.

    Nodes between two calls are included.

    Args:
        loss: scalar, in the graph.
        pre_activations: z of every call of the feature layer.

    Examples:
        >>> import torch
        >>> z = torch.ones(2, requires_grad=True) * 1
        >>> [node.name() for node in between(z.tanh().sum(), [z])]
        ['TanhBackward0', 'SumBackward0']
    """
    ends = {z.grad_fn for z in pre_activations}
    leads_down: dict[Node, bool] = {}
    stack: list[tuple[Node, bool]] = [] if loss.grad_fn is None else [(loss.grad_fn, False)]
    while stack:
        node, children_done = stack.pop()
        if children_done:
            above = any(leads_down.get(child, False) for child, _ in node.next_functions if child)
            leads_down[node] = above or node in ends
            if above:
                yield node
        elif node in ends and len(ends) == 1:  # z lies below no other z
            leads_down[node] = True
        elif node not in leads_down:
            leads_down[node] = False
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child and child not in leads_down)


def bypasses_logits(loss: Tensor, pre_activations: Sequence[Tensor], logits: Sequence[Tensor]) -> bool:
    """Return True if the loss depends on z by a path around the logits.

    Args:
        loss: scalar, in the graph.
        pre_activations: z of every call of the feature layer.
        logits: the outputs of every call of the head.

    Examples:
        >>> import torch
        >>> z = torch.ones(2, requires_grad=True) * 1
        >>> logits = 2 * z
        >>> bypasses_logits(logits.sum(), [z], [logits]), bypasses_logits(logits.sum() + z.sum(), [z], [logits])
        (False, True)
    """
    ends, seen = {z.grad_fn for z in pre_activations}, {y.grad_fn for y in logits}
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node in ends:
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions)
    return False


def multiplied_by_parameters(loss: Tensor, outputs: Sequence[Tensor]) -> bool:
    """Return True if outputs are multiplied later by something trainable.

    The factor is another layer's weight, or a result of another part of the model such as the other tower of CLIP.
    Constant matrices and the outputs themselves do not count: they belong to the loss.

    Args:
        loss: scalar, in the graph.
        outputs: the outputs of every call of the layer.

    Examples:
        >>> import torch
        >>> z, w = torch.ones(2, 2, requires_grad=True) * 1, torch.ones(2, 2, requires_grad=True)
        >>> multiplied_by_parameters((z @ z).sum(), [z]), multiplied_by_parameters((z @ w).sum(), [z])
        (False, True)
    """
    above = set(between(loss, outputs))
    outputs_and_above = above | {z.grad_fn for z in outputs}
    operands = [child for node in above if is_product(node) for child, _ in node.next_functions]
    return any(_reaches_a_parameter(operand) for operand in operands if operand not in outputs_and_above)


def is_product(node: Node) -> bool:
    """Return True if a node multiplies matrices, as layers do."""
    return node.name().startswith(_PRODUCTS)


def _reaches_a_parameter(start: Node | None) -> bool:
    stack, seen = [start], set[Node]()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("AccumulateGrad"):
            return True
        seen.add(node)
        stack.extend(child for child, _ in node.next_functions)
    return False
