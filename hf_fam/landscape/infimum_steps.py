"""The moves of the path to the infimum; docs/path-to-infimum.md proves that each exists."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .chain import Chain, half_range, inverse
from .new_neuron import candidates
from .objective import Objective, flat
from .path_point import LINE, RESTORE, SHRINK, TRANSFER, TURN, PathPoint

# Singular values, or what is left of a column, below this part of the largest count as zero.
RANK_TOLERANCE = 1e-10
# Largest rise that rounding may cause, relative to the loss at the start.
ROUNDING = 1e-9
CANDIDATES = 6000


class Steps:
    """Moves a network and keeps the points; refuses a loss that increases.

    Args:
        model: in float64, moved in place.
        chain: its layers.
        wide: number of the wide layer.
        x: all inputs.
        objective: the loss over them.
        count: number of points of a move.
    """

    def __init__(self, model: nn.Module, chain: Chain, wide: int, x: Tensor, objective: Objective, count: int) -> None:
        self.model, self.chain, self.wide, self.x, self.objective, self.count = model, chain, wide, x, objective, count
        self.points = [PathPoint(TRANSFER, None, 0.0, objective.value(model))]
        self._weights = flat(model.parameters()).detach().clone()

    @property
    def features(self) -> Tensor:
        """Return the outputs of the wide layer behind its activation, ``(items, units)``."""
        return self.chain.features(self.x, self.wide + 1)

    def feature_rank(self) -> int:
        """Return the rank of the wide layer's features."""
        return int(torch.linalg.matrix_rank(self.features, rtol=RANK_TOLERANCE))

    def weight_rank(self, k: int) -> int:
        """Return the rank of a layer's weight."""
        return int(torch.linalg.matrix_rank(self.chain.layers[k].weight, rtol=RANK_TOLERANCE))

    def raise_feature_rank(self) -> None:
        """Give dependent neurons incoming weights that raise the rank to the number of items.

        Raises:
            ValueError: it cannot be reached.
        """
        layer, reader = self.chain.layers[self.wide], self.chain.layers[self.wide + 1]
        basis, dependent, span = _independent_columns(self.features)
        if len(basis) == len(self.x):
            return
        shares = torch.linalg.lstsq(self.features[:, basis], self.features[:, dependent]).solution
        moved = reader.weight.clone()
        moved[:, basis] += moved[:, dependent] @ shares.T
        moved[:, dependent] = 0
        self._move(TRANSFER, [reader.weight], [moved])
        h = self.chain.features(self.x, self.wide)
        has_bias = layer.bias is not None
        ones = torch.cat([h, h.new_ones(len(h), 1)], dim=1) if has_bias else h
        incoming = candidates(ones, has_bias, CANDIDATES)
        values = self.chain.activations[self.wide](ones @ incoming.T)
        chosen = _complement(values, span, min(len(dependent), len(self.x) - len(basis)))
        weight = layer.weight.clone()
        turned = dependent[: len(chosen)]
        weight[turned] = incoming[chosen][:, : h.shape[1]]
        parameters, targets = [layer.weight], [weight]
        if has_bias:
            bias = layer.bias.clone()
            bias[turned] = incoming[chosen][:, -1]
            parameters, targets = [*parameters, layer.bias], [*targets, bias]
        self._move(TURN, parameters, targets)
        # Nearly dependent neurons have stayed, so only rounding decides the rank.
        reached = int(torch.linalg.matrix_rank(self.features))
        if reached < len(self.x):
            raise ValueError(
                f"the features of layer '{self.chain.names[self.wide]}' reach the rank {reached} for "
                f"{len(self.x)} items, whatever its weights: give its input a bias, or items further apart."
            )

    def shrink(self, k: int, best: Tensor | None) -> None:
        """Shrink the values of hidden layer k, so that the outputs of layer k + 1 can be moved freely.

        Args:
            k: number of the hidden layer, above the wide one.
            best: where the outputs of layer k + 1 will go, if it is the last.
        """
        activation, above = self.chain.activations[k], self.chain.layers[k + 1]
        outputs = self.chain.pre_activations(self.x)
        z, start = outputs[k], activation(outputs[k])
        center, room = half_range(activation, z)
        if best is None:  # what the next layer's own values will need
            next_center, next_room = half_range(self.chain.activations[k + 1], z)
            ends = torch.tensor([next_center - next_room, next_center + next_room]).to(z)
            limit = float(inverse(self.chain.activations[k + 1], ends).abs().max()) if next_room < 100 else 100.0
            change = outputs[k + 1].abs() + outputs[k + 1].abs().clamp_min(limit)
        else:
            change = (best - outputs[k + 1]).abs()
        needed = float((change.norm(dim=1) / _smallest_singular_value(above.weight)).max())
        largest = max(float((start - center).abs().max()), needed)
        factor = min(1.0, room / 2 / largest)
        if factor == 1.0:
            return
        weight, bias = above.weight.clone(), None if above.bias is None else above.bias.clone()

        def at(t: float) -> None:
            share = factor**t
            above.weight.copy_(weight / share)
            if bias is not None:
                above.bias.copy_(bias + (weight - weight / share).sum(dim=1) * center)
            self._realize(k, z if t == 0 else inverse(activation, center + share * (start - center)))

        self._follow(SHRINK, at)

    def restore_weight_rank(self, k: int) -> None:
        """Give a layer's weight full row rank, at constant outputs.

        The values below lose their part in the weight's kernel, which the layer does not see. Then the weight may do
        what it likes with that part.

        Raises:
            ValueError: the weight is so badly conditioned that its rank is not clear.
        """
        layer = self.chain.layers[k]
        u, s, v = torch.linalg.svd(layer.weight, full_matrices=True)
        rank = int((s > RANK_TOLERANCE * s[0]).sum()) if s[0] > 0 else 0
        if rank < layer.out_features:
            activation = self.chain.activations[k - 1]
            z = self.chain.pre_activations(self.x)[k - 1]
            start, center = activation(z), half_range(activation, z)[0]
            kernel = v[rank:]
            lost = ((start - center) @ kernel.T) @ kernel
            self._follow(
                RESTORE, lambda t: self._realize(k - 1, z if t == 0 else inverse(activation, start - t * lost))
            )
            size = float(s[:rank].mean()) if rank else 1.0
            added = layer.weight + size * u[:, rank:] @ v[rank : layer.out_features]
            biases, moved = [], []
            if layer.bias is not None:  # the middle of the range is no part of the kernel
                biases = [layer.bias]
                moved = [layer.bias - (added - layer.weight).sum(dim=1) * center]
            self._move(RESTORE, [layer.weight, *biases], [added, *moved])
        elif s[-1] < 1e-6 * s[0]:
            raise ValueError(
                f"the weight of layer '{self.chain.names[k]}' has singular values from {float(s[-1]):.1e} to "
                f"{float(s[0]):.1e}: its row rank is neither full nor clearly deficient; start elsewhere."
            )

    def straight_line(self, best: Tensor) -> None:
        """Move the outputs on a straight line."""
        last = len(self.chain.layers) - 1
        start = self.chain.pre_activations(self.x)[last]
        self._follow(LINE, lambda t: self._realize(last, start + t * (best - start)))

    def _realize(self, k: int, outputs: Tensor) -> None:
        """Set the weights above the wide layer so that layer k has these outputs."""
        layer = self.chain.layers[k]
        for _ in range(2):  # the second time removes the rounding of the first
            now = self.chain.pre_activations(self.x)
            difference = outputs - now[k]
            if k == self.wide + 1:
                layer.weight.add_(torch.linalg.lstsq(self.features, difference, driver="gelsd").solution.T)
            else:
                activation = self.chain.activations[k - 1]
                values = activation(now[k - 1]) + difference @ torch.linalg.pinv(layer.weight).T
                self._realize(k - 1, inverse(activation, values))

    def _move(self, phase: str, parameters: list[Tensor], targets: list[Tensor]) -> None:
        """Move parameters on a straight line."""
        starts = [parameter.detach().clone() for parameter in parameters]

        def at(t: float) -> None:
            for parameter, start, target in zip(parameters, starts, targets, strict=True):
                parameter.copy_(start + t * (target - start) if t < 1 else target)

        self._follow(phase, at)

    def _follow(self, phase: str, at: Callable[[float], None]) -> None:
        """Add the points of a curve, given by the weights at t from 0 to 1."""
        for j in range(1, self.count):
            at(j / (self.count - 1))
            loss, weights = self.objective.value(self.model), flat(self.model.parameters()).detach().clone()
            last = self.points[-1]
            if not loss <= last.loss + ROUNDING * max(1.0, abs(self.points[0].loss)):
                raise RuntimeError(
                    f"the loss rose from {last.loss!r} to {loss!r} in phase {phase!r}. It is not convex in the "
                    f"outputs, or layer '{self.chain.names[self.wide]}' is too badly conditioned: widen it."
                )
            length = last.length + float((weights - self._weights).norm())
            self.points.append(PathPoint(phase, None, length, loss))
            self._weights = weights


def _independent_columns(columns: Tensor) -> tuple[list[int], list[int], Tensor]:
    """Choose columns by pivoting.

    Returns:
        The independent columns, the others, and an orthonormal basis of the former.
    """
    left, basis = columns.clone(), columns.new_zeros(len(columns), 0)
    chosen: list[int] = []
    largest = float(left.norm(dim=0).max())
    while len(chosen) < min(columns.shape):
        norms = left.norm(dim=0)
        best = int(norms.argmax())
        if float(norms[best]) <= RANK_TOLERANCE * largest:
            break
        basis = _extended(basis, left[:, best])
        chosen.append(best)
        left = columns - basis @ (basis.T @ columns)
    return chosen, [k for k in range(columns.shape[1]) if k not in chosen], basis


def _complement(values: Tensor, basis: Tensor, count: int) -> list[int]:
    """Choose columns that reach farthest out of the span of a basis and of each other."""
    chosen: list[int] = []
    norms = values.norm(dim=0)
    # A neuron that is zero up to rounding would get a random direction.
    scaled = torch.where(norms > 1e-6 * norms.max(), values / norms.clamp_min(1e-300), 0.0)
    for _ in range(count):
        best = int((scaled - basis @ (basis.T @ scaled)).norm(dim=0).argmax())
        chosen.append(best)
        basis = _extended(basis, scaled[:, best])
    return chosen


def _extended(basis: Tensor, column: Tensor) -> Tensor:
    for _ in range(2):
        column = column - basis @ (basis.T @ column)
    return torch.cat([basis, (column / column.norm().clamp_min(1e-300))[:, None]], dim=1)


def _smallest_singular_value(weight: Tensor) -> float:
    """Return the smallest singular value that counts; 1 for a weight of zeros."""
    values = torch.linalg.svdvals(weight)
    return float(values[values > RANK_TOLERANCE * values[0]].min()) if values[0] > 0 else 1.0
