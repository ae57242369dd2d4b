"""The autograd graph between the outputs of a layer and a loss, walked once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

# A node and the index of its output: a compiled function is one node with many outputs.
_Edge = tuple[Node, int]

# Backward nodes of identities. DistributedDataParallel adds one to everything that a model returns. torch adds one to
# what a module with a full backward hook takes and returns, DeepSpeed ZeRO stage 3 to every module (deepspeed 0.19).
_IDENTITIES = (
    "_DDPSinkBackward",
    "BackwardHookFunctionBackward",
    "PreBackwardFunctionForModuleBackward",
    "PostBackwardFunctionModuleBackward",
)

# Backward nodes of sums.
_SUMS = ("AddBackward", "SubBackward")

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
        self._ends = _edges_of(outputs)
        ends = self._ends | _edges_of(marks)
        # Nothing below the only call of a layer is needed, and that is most of the model.
        floor = {node for node, _ in self._ends} if len(self._ends) == 1 else set()
        self.nodes: list[Node] = []
        leads_down: dict[Node, bool] = {}
        top, output = _past_identities(loss.grad_fn, loss.output_nr)
        self._top = None if top is None else (top, output)
        stack: list[tuple[Node, bool]] = [] if top is None else [(top, False)]
        while stack:
            node, children_done = stack.pop()
            if children_done:
                leads_down[node] = any(edge in ends or leads_down.get(edge[0], False) for edge in _edges_below(node))
                if leads_down[node]:
                    self.nodes.append(node)
            elif node not in leads_down:
                leads_down[node] = False
                if node not in floor:
                    stack.append((node, True))
                    stack.extend((child, False) for child in children_of(node) if child not in leads_down)

    @property
    def top(self) -> Node | None:
        """The node that made the loss."""
        return None if self._top is None else self._top[0]

    @property
    def is_reached(self) -> bool:
        """Whether the loss depends on any of the outputs.

        Examples:
            >>> import torch
            >>> z, other = (torch.ones(2, 2, requires_grad=True) * 1).unbind()
            >>> TailGraph(z.sum(), [z]).is_reached, TailGraph(other.sum(), [z]).is_reached
            (True, False)
        """
        return self._top in self._ends or bool(self._above(self._ends))

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
        return self._above(_edges_of(tensors))

    def leads_to(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether the loss depends on any of some tensors, among the outputs and the marks."""
        ends = _edges_of(tensors)
        return self._top in ends or bool(self._above(ends))

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
        barred, reaching, seen = _edges_of(logits), set(self.nodes), set[Node]()
        stack = [] if self._top is None else [self._top]
        while stack:
            edge = stack.pop()
            if edge in barred:
                continue
            if edge in self._ends:
                return True
            node = edge[0]
            if node in reaching and node not in seen:
                seen.add(node)
                stack.extend(_edges_below(node))
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
        known = above | {node for node, _ in _edges_of(outputs)}
        factors = [child for node in above if is_product(node) for child in children_of(node) if child not in known]
        return any(map(_reaches_a_parameter, factors))

    def has_trained_factors(self, outputs: Sequence[Tensor]) -> bool:
        """Return whether something trained, besides the outputs, takes part in the loss other than by a sum.

        Args:
            outputs: what calls of the layer returned, among the outputs and the marks.

        Examples:
            >>> import torch
            >>> z, s = torch.ones(2, requires_grad=True) * 1, torch.ones((), requires_grad=True)
            >>> TailGraph(z.sum() * s, [z]).has_trained_factors([z])
            True
            >>> TailGraph(2 * z.sum() + s, [z]).has_trained_factors([z])
            False
        """
        above = self.above(outputs)
        known = {*above, *(node for node, _ in _edges_of(outputs))}
        factors = [node for node in above if not node.name().startswith(_SUMS)]
        return any(child not in known for node in factors for child in children_of(node))

    def _above(self, ends: set[_Edge]) -> list[Node]:
        leading: set[Node] = set()
        above = []
        for node in self.nodes:
            if any(edge in ends or edge[0] in leading for edge in _edges_below(node)):
                leading.add(node)
                above.append(node)
        return above


def graph_signature(loss: Tensor, outputs: Sequence[Tensor], limit: int = 64) -> tuple[str, ...]:
    """Return the names of the operations next to a loss, which differ between losses of different forms.

    Args:
        loss: a scalar.
        outputs: tensors below which no operation counts, such as the logits.
        limit: largest number of operations.

    Examples:
        >>> import torch
        >>> z = torch.ones(2, requires_grad=True) * 1
        >>> graph_signature(z.tanh().sum(), [z])
        ('SumBackward0', 'TanhBackward0')
    """
    floor = {node for node, _ in _edges_of(outputs)}
    top = top_of(loss)
    found = [] if top is None or top in floor else [top]
    seen = {*found, *floor}
    for node in found:  # which grows
        for child in children_of(node):
            if child not in seen and len(found) < limit:
                seen.add(child)
                found.append(child)
    return tuple(node.name() for node in found)


def loss_nodes(loss: Tensor) -> list[Node]:
    """Return the nodes from a loss down to the first layers and products of activations, those left out.

    Args:
        loss: a scalar.

    Examples:
        >>> import torch
        >>> w = torch.ones(3, 2, requires_grad=True)
        >>> [node.name() for node in loss_nodes((torch.ones(4, 2) @ w.T).tanh().sum())]
        ['SumBackward0', 'TanhBackward0']
    """
    top = top_of(loss)
    found = [] if top is None or is_product(top) else [top]
    seen = set(found)
    for node in found:  # which grows
        for child in children_of(node):
            if child not in seen and not is_product(child):
                seen.add(child)
                found.append(child)
    return found


def kind_of(node: Node) -> str:
    """Return the name of the function that a node differentiates.

    Examples:
        >>> import torch
        >>> kind_of(torch.ones(2, requires_grad=True).tanh().grad_fn)
        'Tanh'
    """
    return node.name().partition("Backward")[0]


def is_product(node: Node) -> bool:
    """Return whether a node multiplies matrices, as layers and products of activations do."""
    return node.name().startswith(_PRODUCTS)


def top_of(tensor: Tensor) -> Node | None:
    """Return the node that made a tensor, below identities, see `inputs_of`; None for a leaf.

    Examples:
        >>> import torch
        >>> layer = torch.nn.Tanh()
        >>> _ = layer.register_full_backward_hook(lambda module, below, above: None)
        >>> top_of(layer(torch.ones(2, requires_grad=True))).name()
        'TanhBackward0'
    """
    return _past_identities(tensor.grad_fn, tensor.output_nr)[0]


def inputs_of(node: Node) -> list[tuple[Node | None, int]]:
    """Return the edges that lead down from a node, past identities.

    DistributedDataParallel, DeepSpeed and full backward hooks add them. Such an identity is one node for all outputs of
    a module. Followed as it stands, it would connect a loss with outputs that it does not depend on.
    """
    return [_past_identities(child, number) for child, number in node.next_functions]


def _past_identities(node: Node | None, output: int) -> tuple[Node | None, int]:
    while node is not None and node.name().startswith(_IDENTITIES):
        node, output = node.next_functions[output]
    return node, output


def _edges_of(tensors: Sequence[Tensor]) -> set[_Edge]:
    edges = [get_gradient_edge(tensor) for tensor in tensors if tensor.requires_grad]
    past = [_past_identities(edge.node, edge.output_nr) for edge in edges]
    return {(node, output) for node, output in past if node is not None}


def _edges_below(node: Node) -> list[_Edge]:
    return [(child, number) for child, number in inputs_of(node) if child is not None]


def children_of(node: Node) -> list[Node]:
    """Return the nodes below a node, see `inputs_of`."""
    return [child for child, _ in _edges_below(node)]


def _reaches_a_parameter(start: Node) -> bool:
    stack, seen = [start], set[Node]()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        if node.name().endswith("AccumulateGrad"):
            return True
        seen.add(node)
        stack.extend(children_of(node))
    return False
