"""What lies between the feature layer and the loss, read off the autograd graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.autograd.graph import Node

# Backward nodes of layers and of products of activations.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "BaddbmmBackward", "ConvolutionBackward", "LinearBackward")


def between(loss: Tensor, pre_activations: Sequence[Tensor]) -> Iterator[Node]:
    """Nodes on a path from the loss down to z of any call, also those between two calls.

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
        elif node in ends and len(ends) == 1:  # nothing below is wanted
            leads_down[node] = True
        elif node not in leads_down:
            leads_down[node] = False
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child and child not in leads_down)


def passes_by(loss: Tensor, pre_activations: Sequence[Tensor], logits: Sequence[Tensor]) -> bool:
    """Whether the loss depends on z by a way that does not lead through the logits.

    Args:
        loss: scalar, in the graph.
        pre_activations: z of every call of the feature layer.
        logits: what every call of the head returned.

    Examples:
        >>> import torch
        >>> z = torch.ones(2, requires_grad=True) * 1
        >>> logits = 2 * z
        >>> passes_by(logits.sum(), [z], [logits]), passes_by(logits.sum() + z.sum(), [z], [logits])
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
    """Whether outputs are multiplied, above, by something trainable that does not come from them.

    That is another layer's weight, or what another part of the model computes (the other tower of CLIP); a constant
    matrix, or the outputs themselves, belong to the loss.

    Args:
        loss: scalar, in the graph.
        outputs: what every call of a layer returned.

    Examples:
        >>> import torch
        >>> z, w = torch.ones(2, 2, requires_grad=True) * 1, torch.ones(2, 2, requires_grad=True)
        >>> multiplied_by_parameters((z @ z).sum(), [z]), multiplied_by_parameters((z @ w).sum(), [z])
        (False, True)
    """
    above = set(between(loss, outputs))
    known = above | {z.grad_fn for z in outputs}
    factors = [child for node in above if is_product(node) for child, _ in node.next_functions if child not in known]
    return any(_reaches_a_parameter(factor) for factor in factors)


def is_product(node: Node) -> bool:
    """Whether a node multiplies matrices, as layers and products of activations do."""
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
