"""A neuron whose weight decay is that of two equal copies, as which it will be split."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .hidden_layer import HiddenLayer
from .neuron_weights import incoming_rows, outgoing_blocks


@dataclass(frozen=True)
class HalvedNeuron:
    """A neuron that stands for two copies with equal incoming and half the outgoing weights each.

    For copies (u, v/2), (u, v/2), the penalty ``alpha / 2 ||theta||^2`` is ``alpha ||u||^2 + alpha / 4 ||v||^2``: twice
    that of the neuron for u, half of it for v. A critical point with this penalty stays one when the neuron is split at
    the ratio 1/2.

    Attributes:
        layer: name of the layer that makes the neuron.
        next_layer: name of the layer that reads it.
        width: number of neurons of the layer.
        neuron: its index.
    """

    layer: str
    next_layer: str
    width: int
    neuron: int

    @classmethod
    def of(cls, hidden: HiddenLayer, neuron: int) -> HalvedNeuron:
        """Return the neuron of a layer that was found."""
        return cls(hidden.names[0], hidden.next_name, hidden.width, neuron)

    def scale(self, model: nn.Module, factors: dict[int, Tensor]) -> None:
        """Scale the decay of the neuron's weights in place; ``factors`` is by the id of a trainable parameter."""
        first, outgoing = model.get_submodule(self.layer), model.get_submodule(self.next_layer)
        for parameter in first.parameters(recurse=False):
            if id(parameter) in factors:
                decay = factors[id(parameter)]
                (decay if decay.dim() == 1 else incoming_rows(first, decay))[self.neuron] *= 2
        weight = outgoing.get_parameter("weight")
        if id(weight) in factors:
            outgoing_blocks(outgoing, self.width, factors[id(weight)])[self.neuron] /= 2
