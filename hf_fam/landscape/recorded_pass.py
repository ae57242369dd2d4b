"""What two consecutive layers read and make in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from .hidden_layer import HiddenLayer


@dataclass
class RecordedPass:
    """Inputs and outputs of the two layers in one forward pass, one entry for every call.

    All tensors are in the graph.

    Attributes:
        features: h, inputs of the first layer.
        pre_activations: n, its outputs.
        activations: inputs of the next layer.
        next_pre_activations: its outputs.
    """

    features: list[Tensor] = field(default_factory=list)
    pre_activations: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    next_pre_activations: list[Tensor] = field(default_factory=list)


@contextmanager
def record_pass(hidden: HiddenLayer, cut: bool = False) -> Iterator[RecordedPass]:
    """Record every call of the two layers inside the ``with`` block.

    With ``cut``, pre-activations become leaves.
    """
    recorded_pass = RecordedPass()

    def on_first(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.detach().requires_grad_() if cut else output
        recorded_pass.features.append(args[0])
        recorded_pass.pre_activations.append(output)
        return output.clone()  # an activation in place must not overwrite the recorded output

    def on_next(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        recorded_pass.activations.append(args[0])
        recorded_pass.next_pre_activations.append(output)
        return output.clone()

    hooks = [hidden.incoming[0].register_forward_hook(on_first), hidden.outgoing.register_forward_hook(on_next)]
    try:
        yield recorded_pass
    finally:
        for hook in hooks:
            hook.remove()
