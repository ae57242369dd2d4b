"""A path from any point to the global infimum, for networks with one extremely wide layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.numbers import require_whole
from ..inputs.packages import optional_packages
from .chain import Chain, chain_of, check_increasing, half_range
from .infimum_steps import Steps
from .objective import Loss, Objective, float64_copy
from .path_point import PathPoint


@dataclass(frozen=True)
class RankCondition:
    """A rank that the path needs.

    Attributes:
        layer: the layer.
        matrix: "features": the outputs of the wide layer, one row an item; "weight": the weight of a later layer.
        rank: at the start.
        needed: the number of items, or the layer's number of outputs.
    """

    layer: str
    matrix: str
    rank: int
    needed: int

    @property
    def holds(self) -> bool:
        """Return True if the rank was full at the start; otherwise the path restores it at constant loss."""
        return self.rank == self.needed


@dataclass(frozen=True, eq=False)
class InfimumPath:
    """A path without an increase, down to the lowest loss that outputs can have.

    Attributes:
        points: points from the start, see `PathPoint`.
        model: the network at the end, in float64.
        infimum: the lowest loss over all outputs, which no network can beat.
        conditions: the rank conditions, with the ranks at the start.
    """

    points: list[PathPoint]
    model: nn.Module
    infimum: float
    conditions: tuple[RankCondition, ...]

    @property
    def losses(self) -> list[float]:
        """Return the loss at every point."""
        return [point.loss for point in self.points]

    def plot(self, path: str | Path) -> None:
        """Draw the loss along the path; needs matplotlib.

        Args:
            path: the file to write. Its extension selects the format.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .path_figure import plot_infimum_path

        plot_infimum_path(self.points, path)


@torch.no_grad()
def path_to_infimum(
    model: nn.Module, loss: Loss, data: Any, layer: str | None = None, *, reduction: str | None = None, points: int = 21
) -> InfimumPath:
    """Return a path to the global infimum of a loss that is convex in the outputs.

    It exists from every point if a layer has at least as many units as there are items, and later layers are not
    wider. The documentation, docs/path-to-infimum.md, states the hypotheses and proves it. The idea is that of
    Petzka and Sminchisescu 2021 (arXiv 1812.06486), and the proof was written for hf_fam. The phases:

    1. *transfer* and *turn*, if the wide layer's features have a rank below the number of items. Neurons whose values
       depend on those of others pass their outgoing weights on, and take incoming weights that raise the rank.
    2. *shrink*, for each later hidden layer. Its values shrink towards the middle of the activation's range, while the
       weights above them grow. *restore* gives the weight above full row rank, if it has not.
    3. *line*. The outputs move on a straight line to those of the lowest loss.

    The loss is constant in 1 and 2, and falls in 3 by convexity.

    Args:
        model: an ``nn.Sequential`` of linear layers and elementwise activations; it stays as it is.
        loss: convex in the outputs, called with outputs and targets. All items are used as one batch.
        data: see `split_certificate`; pairs of tensors.
        layer: name of the wide layer; None: the first that is wide enough.
        reduction: see `split_certificate`.
        points: number of points of each phase, at least 2.

    Raises:
        ValueError: no layer is wide enough, later widths increase, a rank condition cannot be restored, or an
            activation after the wide layer is not strictly increasing. The message names the layer.
        TypeError: the model is not such a chain.
        RuntimeError: the loss increased by more than rounding: it is not convex in the outputs, or the features are too
            badly conditioned.

    Examples:
        >>> from hf_fam.landscape import HalfSquaredError
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(12, 2), torch.randn(12, 1)
        >>> model = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> path = path_to_infimum(model, HalfSquaredError(), (x, y))
        >>> path.losses[0] > 1, path.losses[-1] < 1e-9
        (True, True)
    """
    points = require_whole("points", points, 2)
    copied = float64_copy(model)
    chain = chain_of(copied)
    x, y = _whole(data, next(copied.parameters()))
    objective = Objective(loss, (x, y), reduction)
    wide = _wide_layer(chain, len(x), layer)
    _check_after(chain, wide, x)
    _check_distinct(chain.features(x, wide), chain.names[wide])
    best, infimum = _best_outputs(copied(x), objective)
    steps = Steps(copied, chain, wide, x, objective, points)
    conditions = [RankCondition(chain.names[wide], "features", steps.feature_rank(), len(x))]
    steps.raise_feature_rank()
    for k in range(wide + 1, len(chain.layers) - 1):
        needed = chain.layers[k + 1].out_features
        conditions.append(RankCondition(chain.names[k + 1], "weight", steps.weight_rank(k + 1), needed))
        steps.shrink(k, best if k + 2 == len(chain.layers) else None)
        steps.restore_weight_rank(k + 1)
    steps.straight_line(best)
    return InfimumPath(steps.points, copied, infimum, tuple(conditions))


def _whole(data: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return all inputs and targets as one batch."""
    batches = list(Objective(None, data).data)
    for batch in batches:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)):
            raise TypeError("data must consist of pairs of tensors (inputs, targets).")
    x, y = (torch.cat([batch[k] for batch in batches]) for k in (0, 1))
    return x.to(like), y.to(like) if y.is_floating_point() else y.to(like.device)


def _wide_layer(chain: Chain, items: int, layer: str | None) -> int:
    """Return the number of the wide layer.

    Raises:
        ValueError: it is not wide enough, or there is none.
    """
    hidden = range(len(chain.layers) - 1)
    if layer is not None and layer not in chain.names[:-1]:
        raise ValueError(f"layer={layer!r} is no hidden layer: give one of {', '.join(map(repr, chain.names[:-1]))}.")
    for k in hidden if layer is None else [chain.names.index(layer)]:
        if chain.layers[k].out_features >= items:
            return k
    widths = ", ".join(f"'{chain.names[k]}' has {chain.layers[k].out_features}" for k in hidden)
    raise ValueError(
        f"no layer is wide enough: {widths} units for {items} items; give at least as many units as items."
    )


def _check_after(chain: Chain, wide: int, x: Tensor) -> None:
    """Check widths and activations after the wide layer."""
    for k in range(wide + 1, len(chain.layers) - 1):
        name, units = chain.names[k + 1], chain.layers[k + 1].out_features
        if units > chain.layers[k].out_features:
            raise ValueError(
                f"the weight of layer '{name}' cannot have full row rank: it makes {units} values from "
                f"{chain.layers[k].out_features}; widths after the wide layer must not increase."
            )
        check_increasing(chain.activations[k], chain.names[k], x)
        if chain.layers[k + 1].bias is None and abs(half_range(chain.activations[k], x)[0]) > 0:
            raise ValueError(
                f"layer '{name}' has no bias, which the activation before it needs, since it is not 0 at 0."
            )


def _check_distinct(features: Tensor, name: str) -> None:
    """Refuse items that the wide layer cannot tell apart."""
    scale = float(features.norm(dim=1).max())
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    closest = int(distances.argmin())
    i, j = divmod(closest, len(features))
    if float(distances[i, j]) <= 1e-9 * scale:
        raise ValueError(
            f"the features of layer '{name}' cannot have the rank of the number of items: items {min(i, j)} and "
            f"{max(i, j)} have the same inputs there. Give distinct items, or other weights before the layer."
        )


def _best_outputs(outputs: Tensor, objective: Objective) -> tuple[Tensor, float]:
    """Return outputs of the lowest loss, whatever network makes them, and that loss."""
    with optional_packages("path_to_infimum", "landscape"):
        from scipy.optimize import minimize
    free = nn.Linear(1, 1, bias=False).to(outputs)
    free.weight = nn.Parameter(outputs.clone())
    free.forward = lambda inputs: free.weight  # type: ignore[method-assign, assignment]

    def value_and_gradient(vector: Any) -> tuple[float, Any]:
        with torch.no_grad():
            free.weight.copy_(torch.as_tensor(vector).to(outputs).view_as(outputs))
        with torch.enable_grad():
            value, gradient = objective.value_and_gradient(free)
        return value, gradient.cpu().numpy()

    start = outputs.reshape(-1).cpu().numpy()
    options = {"maxiter": 2000, "gtol": 1e-13, "ftol": 0.0}
    result = minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    return torch.as_tensor(result.x).to(outputs).view_as(outputs), float(result.fun)
