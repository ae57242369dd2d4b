"""The autograd graph between the outputs of a layer and a loss, walked once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

# Backward nodes of layers and of products of activations.
_PRODUCTS = ("AddmmBackward", "MmBackward", "BmmBackward", "BaddbmmBackward", "ConvolutionBackward", "LinearBackward")


class TailGraph:
    """The nodes on a path from a loss down to the outputs of a layer, those between two outputs included.

    Args:
        loss: a scalar.
        outputs: what every call of the layer returned.
        marks: further tensors that `above` and `passes_by` are asked about, such as the logits.

    Attributes:
        nodes: every node, each behind the nodes that it leads down to, so that the loss's own comes last.

    Examples:
        >>> import torch
        >>> z = torch.ones(2, requires_grad=True) * 1
        >>> [node.name() for node in TailGraph(z.tanh().sum(), [z]).nodes]
        ['TanhBackward0', 'SumBackward0']
    """

    def __init__(self, loss: Tensor, outputs: Sequence[Tensor], marks: Sequence[Tensor] = ()) -> None:
        self._ends = _nodes_of(outputs)
        ends = self._ends | _nodes_of(marks)
        # Below the only call of a layer nothing is wanted, and that is most of the model.
        floor = self._ends if len(self._ends) == 1 else set()
        self.nodes: list[Node] = []
        leads_down: dict[Node, bool] = {}
        stack: list[tuple[Node, bool]] = [] if loss.grad_fn is None else [(loss.grad_fn, False)]
        while stack:
            node, children_done = stack.pop()
            if children_done:
                above = any(leads_down.get(child, False) for child in _children(node))
                leads_down[node] = above or node in ends
                if above:
                    self.nodes.append(node)
            elif node in floor:
                leads_down[node] = True
            elif node not in leads_down:
                leads_down[node] = False
                stack.append((node, True))
                stack.extend((child, False) for child in _children(node) if child not in leads_down)
        self._top = loss.grad_fn
        self._reaching = {node for node, leads in leads_down.items() if leads}

    @property
    def is_reached(self) -> bool:
        """Whether the loss depends on any of the outputs."""
        return self._top in self._ends or bool(self.above_nodes(self._ends))

    def above(self, tensors: Sequence[Tensor]) -> list[Node]:
        """Return the nodes on a path from the loss down to some tensors, in the order of `nodes`.

        Args:
            tensors: among the outputs and the marks.

        Examples:
            >>> import torch
            >>> z = torch.ones(2, requires_grad=True) * 1
            >>> logits = 2 * z
            >>> graph = TailGraph(logits.sum(), [z], [logits])
            >>> [node.name() for node in graph.above([logits])]
            ['SumBackward0']
        """
        return self.above_nodes(_nodes_of(tensors))

    def above_nodes(self, ends: set[Node]) -> list[Node]:
        """Return the nodes on a path from the loss down to some nodes of the graph."""
        leading, above = set(ends), []
        for node in self.nodes:
            if any(child in leading for child in _children(node)):
                leading.add(node)
                above.append(node)
        return above

    def leads_to(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether the loss depends on any of some tensors, among the outputs and the marks."""
        ends = _nodes_of(tensors)
        return self._top in ends or bool(self.above_nodes(ends))

    def passes_by(self, logits: Sequence[Tensor]) -> bool:
        """Return whether the loss depends on the outputs by a way that does not lead through the logits.

        Args:
            logits: what every call of the head returned, among the marks.

        Examples:
            >>> import torch
            >>> z = torch.ones(2, requires_grad=True) * 1
            >>> logits = 2 * z
            >>> TailGraph(logits.sum(), [z], [logits]).passes_by([logits])
            False
            >>> TailGraph(logits.sum() + z.sum(), [z], [logits]).passes_by([logits])
            True
        """
        seen: set[Node | None] = {*_nodes_of(logits), None}
        stack = [self._top]
        while stack:
            node = stack.pop()
            if node in seen or node not in self._reaching:
                continue
            if node in self._ends:
                return True
            seen.add(node)
            stack.extend(_children(node))
        return False

    def multiplies_by_parameters(self, outputs: Sequence[Tensor]) -> bool:
        """Return whether outputs are multiplied, above, by something trainable that does not come from them.

        That is another layer's weight, or what another part of the model computes (the other tower of CLIP). A
        constant matrix, or the outputs themselves, belong to the loss.

        Args:
            outputs: what calls of the layer returned, among the outputs.

        Examples:
            >>> import torch
            >>> z, w = torch.ones(2, 2, requires_grad=True) * 1, torch.ones(2, 2, requires_grad=True)
            >>> TailGraph((z @ z).sum(), [z]).multiplies_by_parameters([z])
            False
            >>> TailGraph((z @ w).sum(), [z]).multiplies_by_parameters([z])
            True
        """
        above = set(self.above(outputs))
        known = above | _nodes_of(outputs)
        factors = [child for node in above if is_product(node) for child in _children(node) if child not in known]
        return any(map(_reaches_a_parameter, factors))


def is_product(node: Node) -> bool:
    """Return whether a node multiplies matrices, as layers and products of activations do."""
    return node.name().startswith(_PRODUCTS)


def _nodes_of(tensors: Sequence[Tensor]) -> set[Node]:
    return {get_gradient_edge(tensor).node for tensor in tensors if tensor.requires_grad}


def _children(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _reaches_a_parameter(start: Node) -> bool:
    stack, seen = [start], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node.name().endswith("AccumulateGrad"):
            return True
        seen.add(node)
        stack.extend(_children(node))
    return False
