"""The neurons of a hidden layer: their incoming and outgoing weights, and how to rewrite both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inputs.numbers import as_number
from ..inputs.text import quote
from .neuron_weights import (
    incoming_rows,
    inputs_of,
    norm_rows,
    outgoing_blocks,
    rewrite_incoming,
    rewrite_norm,
    rewrite_outgoing,
)


@dataclass(frozen=True)
class Naming:
    """Names of the two halves of an MLP in a family of transformers models.

    The names are relative to their common prefix.

    Attributes:
        incoming: the layers into the neurons; two of them in a gated MLP.
        outgoing: the layer that reads the neurons.
        sizes: names of the number of neurons in the configuration.
    """

    incoming: tuple[str, ...]
    outgoing: str
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class HiddenLayer:
    """The neurons between two layers of a model.

    Attributes:
        names: dotted names of the incoming layers.
        incoming: the layers whose outputs are the neurons; in a gated MLP the gate and the other factor.
        next_name: dotted name of the outgoing layer.
        outgoing: the layer that reads them.
        naming: the transformers naming that identified the layer; None for others.
        norms: batch normalizations between the layers, whose channels are the neurons.
        is_elementwise: False if pooling or a normalization lies between the layers.
    """

    names: tuple[str, ...]
    incoming: tuple[Any, ...]
    next_name: str
    outgoing: Any
    naming: Naming | None = None
    norms: tuple[Any, ...] = ()
    is_elementwise: bool = True

    @property
    def width(self) -> int:
        """Return the number of neurons."""
        return incoming_rows(self.incoming[0]).shape[0]

    @property
    def positions(self) -> int:
        """Return how many inputs of the outgoing layer a neuron has: more than 1 for a flattened image."""
        return inputs_of(self.outgoing) // self.width

    @property
    def is_gated(self) -> bool:
        """Return True if a neuron is a product of two factors."""
        return len(self.incoming) > 1

    @property
    def fan_in(self) -> Tensor:
        """Return incoming weights and biases, one row a neuron; ``(width, ...)``."""
        parts = [incoming_rows(module) for module in self.incoming]
        parts += [module.bias[:, None] for module in self.incoming if module.bias is not None]
        parts += [rows for norm in self.norms for rows in norm_rows(norm)]
        return torch.cat([part.detach() for part in parts], dim=1)

    @property
    def fan_out(self) -> Tensor:
        """Return the outgoing weights, one column a neuron; ``(outputs, width)``.

        A convolution has a row for each output and place of the kernel. A linear layer behind a flattened image has a
        row for each output and position.
        """
        return self.blocks.detach().flatten(1).T

    @property
    def blocks(self) -> Tensor:
        """Return the outgoing weights as a view, one block a neuron: ``(width, outputs, ...)``."""
        return outgoing_blocks(self.outgoing, self.width)

    def rewrite(self, sources: Tensor, fan_out: Tensor) -> None:
        """Replace the neurons: number k gets the inputs of former ``sources[k]``.

        Args:
            sources: indices of former neurons, shape ``(new width,)``.
            fan_out: their outgoing weights, shape ``(outputs, new width)``, as in `fan_out`.
        """
        rewrite_outgoing(self.outgoing, fan_out, self.width)
        for module in self.incoming:
            rewrite_incoming(module, sources)
        for norm in self.norms:
            rewrite_norm(norm, sources)


def check_neuron(hidden: HiddenLayer, neuron: int) -> int:
    """Return the index as an int, or refuse a neuron that does not exist.

    Raises:
        ValueError: ``neuron`` is not an index into the layer.
    """
    number = as_number(neuron)
    if not number.is_integer() or not 0 <= number < hidden.width:
        raise ValueError(f"neuron={quote(neuron)}: layer '{hidden.names[0]}' has neurons 0 to {hidden.width - 1}.")
    return int(number)
