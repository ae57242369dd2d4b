"""A neuron that a layer does not have yet: which incoming weights would lower the loss most.

With outgoing weights of zero, a neuron is free: its incoming weights change nothing. Its outgoing weights then have the
gradient ``sum_a sigma(w . h_a) delta_a``, and the loss falls along it at first order. Divided by the size of the
neuron's own values, that gradient says how much a small change of the function helps, as in boosting.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .activation import activation_of
from .hidden_layer import HiddenLayer
from .objective import Objective
from .recorded_pass import record_pass
from .split_curvature import Rows

COUNT = 384
# Deviations of the pre-activations: from nearly linear to a step.
SPREADS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class NewNeuron:
    """Weights of a neuron to add.

    Attributes:
        incoming: incoming weights, the bias last if the layer trains one; ``(i,)``.
        gradient: of its outgoing weights while they are zero, ``(s,)``.
    """

    incoming: Tensor
    gradient: Tensor


def candidates(h: Tensor, has_bias: bool, count: int = COUNT) -> Tensor:
    """Return incoming weights that bend within the data, ``(count, i)``; the same ones for the same features.

    Args:
        h: features, with ones in the last column if there is a bias; ``(rows, i)``.
        has_bias: whether there is one.
        count: how many.
    """
    generator = torch.Generator().manual_seed(0)
    features = h[:, :-1] if has_bias else h
    directions = torch.randn(count, features.shape[1], generator=generator, dtype=torch.float64).to(h)
    values = directions @ features.T
    size = values.std(dim=1) if has_bias else values.square().mean(dim=1).sqrt()
    spreads = torch.tensor(SPREADS).to(h).repeat(count // len(SPREADS) + 1)[:count]
    scale = spreads / size.clamp_min(1e-12)
    weights = directions * scale[:, None]
    if not has_bias:
        return weights
    centers = torch.randint(len(h), (count,), generator=generator).to(h.device)
    return torch.cat([weights, -(values.gather(1, centers[:, None]) * scale[:, None])], dim=1)


def best_new_neuron(model: nn.Module, objective: Objective, hidden: HiddenLayer, neuron: int) -> NewNeuron | None:
    """Return the candidate whose gradient is largest for the size of its values; None if all gradients are zero.

    Args:
        model: in float64.
        objective: the loss over the data.
        hidden: the layer.
        neuron: any of its neurons, whose rows are read.
    """
    parts: list[tuple[Rows, Tensor]] = []
    losses = objective.batch_losses(model)
    while True:
        with record_pass(hidden) as recorded_pass:
            loss = next(losses, None)
        if loss is None:
            break
        parts.append((Rows(hidden, neuron, recorded_pass), loss))
    h = torch.cat([rows.h for rows, _ in parts])
    weights = candidates(h, parts[0][0].has_bias)
    activation = activation_of(model, objective, hidden)
    gradients, squares = torch.zeros(()).to(h), torch.zeros(len(weights)).to(h)
    for rows, loss in parts:
        with torch.no_grad():
            values = activation(rows.h @ weights.T)
        gradients = gradients + rows.outgoing_gradients(loss, values)
        squares += values.square().sum(dim=0)
    gains = gradients.norm(dim=1) / squares.sqrt().clamp_min(1e-300)
    best = int(gains.argmax())
    if not gains[best] > 0:
        return None
    return NewNeuron(weights[best], gradients[best])
