"""Build a path of networks on which the loss never increases, point by point."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .descent import descend, search
from .hidden_layer import HiddenLayer
from .neuron_weights import incoming_rows, outgoing_blocks
from .objective import Objective, trainable
from .path_point import DESCEND, SLIDE, STEP, PathPoint
from .rounding import loss_rounding
from .splitting import split_fan_out

# Largest rounding error of the loss, relative to loss and ratio: weights of the ratio's size cancel in the outputs.
ROUNDING = 1e-12
SAMPLES = 4


class PathBuilder:
    """The points so far; refuses a loss that increases."""

    def __init__(self, model: nn.Module, objective: Objective, ratio: float) -> None:
        self.model, self.objective = model, objective
        self.points = [PathPoint(SLIDE, ratio, 0.0, objective.value(model))]
        # Large weights that cancel round more.
        self.rounding = max(ROUNDING * max(1.0, abs(self.points[0].loss)), loss_rounding(model, objective))

    def add(self, phase: str, ratio: float | None, length: float) -> None:
        """Add the model as it is now, ``length`` away from the last point.

        Raises:
            RuntimeError: the loss rose by more than rounding.
        """
        self._add(phase, ratio, length, self.objective.value(self.model))

    def copy(self) -> PathBuilder:
        """Return a copy, to continue the path in another direction."""
        other = copy.copy(self)
        other.model, other.points = copy.deepcopy(self.model), list(self.points)
        return other

    def leave(self, displacement: Tensor, steps: int) -> PathBuilder | None:
        """Step along a displacement or a part of it, then descend; return None if no step lowers the loss."""
        ratio = self.points[-1].ratio
        step_and_losses = search(self.model, self.objective, displacement, self.points[-1].loss, SAMPLES)
        if step_and_losses is None:
            return None
        step, losses = step_and_losses
        for loss in losses:
            self._add(STEP, ratio, float(step.norm()) / SAMPLES, loss)
        for length, loss in descend(self.model, self.objective, steps, SAMPLES):
            self._add(DESCEND, ratio, length, loss)
        return self

    def _add(self, phase: str, ratio: float | None, length: float, loss: float) -> None:
        previous = self.points[-1]
        if not loss <= previous.loss + self.rounding * max(1.0, abs(ratio or 0.0)):
            raise RuntimeError(
                f"the loss rose from {previous.loss!r} to {loss!r} in phase {phase!r}, so it depends on more than the "
                "parameters. Use fixed data, without augmentation, and without shuffling under batch normalization."
            )
        self.points.append(PathPoint(phase, ratio, previous.length + length, loss))


@dataclass(frozen=True)
class Split:
    """Two neurons that were one, in the model of the path."""

    hidden: HiddenLayer
    old: int
    new: int
    v: Tensor

    @torch.no_grad()
    def slide(self, ratio: float) -> float:
        """Set another ratio; return the length of the way there."""
        blocks = self.hidden.blocks.data
        before = blocks[[self.old, self.new]].clone()
        for neuron, part in zip((self.old, self.new), split_fan_out(self.v, ratio), strict=True):
            blocks[neuron] = part.view_as(blocks[neuron])
        return float((blocks[[self.old, self.new]] - before).norm())

    @torch.no_grad()
    def turn(self, incoming: Tensor) -> float:
        """Set the new neuron's incoming weights, the bias last; return the length of the way there."""
        first = self.hidden.incoming[0]
        rows = incoming_rows(first).data
        inputs = rows.shape[1]
        difference = incoming[:inputs] - rows[self.new]
        rows[self.new] += difference
        square = difference.square().sum()
        if len(incoming) > inputs:
            change = incoming[-1] - first.bias.data[self.new]
            first.bias.data[self.new] += change
            square = square + change.square()
        return float(square.sqrt())

    def incoming(self) -> Tensor:
        """Return the new neuron's incoming weights, the bias last if it is trained."""
        first = self.hidden.incoming[0]
        row = incoming_rows(first).detach()[self.new]
        has_bias = first.bias is not None and first.bias.requires_grad
        return torch.cat([row, first.bias.detach()[self.new, None]]) if has_bias else row.clone()

    def growth(self, model: nn.Module, outgoing: Tensor) -> Tensor:
        """Return the displacement that adds to the new neuron's outgoing weights, in the space of the parameters."""
        moved = {id(p): torch.zeros_like(p) for p in trainable(model)}
        layer = self.hidden.outgoing
        block = outgoing_blocks(layer, self.hidden.width, moved[id(layer.weight)])[self.new]
        block += outgoing.view_as(block)
        return torch.cat([moved[id(p)].reshape(-1) for p in trainable(model)])

    def displacement(self, model: nn.Module, direction: Tensor, ratio: float) -> Tensor:
        """Return the direction (q, w) in the space of the parameters.

        u1 + (1 - ratio) q, u2 - ratio q, v1 + w, v2 - w.
        """
        first, outgoing = self.hidden.incoming[0], self.hidden.outgoing
        inputs = incoming_rows(first).shape[1]
        w = direction[len(direction) - len(self.v) :]
        q = direction[: len(direction) - len(self.v)]
        moved = {id(p): torch.zeros_like(p) for p in trainable(model)}
        rows = incoming_rows(first, moved[id(first.weight)])
        blocks = outgoing_blocks(outgoing, self.hidden.width, moved[id(outgoing.weight)])
        for neuron, share, sign in ((self.old, 1 - ratio, 1), (self.new, -ratio, -1)):
            rows[neuron] = share * q[:inputs]
            blocks[neuron] += sign * w.view_as(blocks[neuron])
            if len(q) > inputs:
                moved[id(first.bias)][neuron] = share * q[-1]
        return torch.cat([moved[id(p)].reshape(-1) for p in trainable(model)])
