"""The search for a critical point of the loss, as precise as float64 allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..inputs.numbers import require_whole
from ..inputs.packages import optional_packages
from .descent import descend
from .halved_neuron import HalvedNeuron
from .hidden_layer import check_neuron
from .hidden_layer_search import find_hidden_layer
from .judge import DISTANCE_TOLERANCE, GRADIENT_TOLERANCE
from .objective import Loss, Objective, flat, float64_copy, move, relative_gradient, trainable
from .smallest_curvature import newton_step

# The Newton steps at the end stop when the gradient no longer falls by this factor.
PROGRESS = 2.0
# Weights that have grown by this factor during the search go to infinity.
GROWTH = 1e4
# Below this part of the first loss, the loss is nearly zero, and the gradient relative to it is large.
FITTED = 1e-6


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """The end of a search for a critical point.

    Attributes:
        model: the network there, in float64.
        loss: the loss there, with the penalty of a weight decay.
        relative_gradient: ``||grad L|| ||theta|| / |L|``.
        converged: True if a critical point lies within a ten-thousandth of the parameters' length, by a Newton step. In
            models of more than ``dense_limit`` parameters: True if the relative gradient is below 1e-5.
        reason: one sentence: what shows that it converged, or what went wrong and what to do.
    """

    model: nn.Module
    loss: float
    relative_gradient: float
    converged: bool
    reason: str


def find_critical_point(
    model: nn.Module,
    loss: Loss | None,
    data: Any,
    *,
    reduction: str | None = None,
    steps: int = 2000,
    dense_limit: int = 1000,
    weight_decay: float = 0.0,
    split: tuple[str, int] | None = None,
    next_layer: str | None = None,
) -> CriticalPoint:
    """Search for a critical point of the loss from the model's weights.

    The search runs in evaluation mode and over all data. It begins with 100 steps of L-BFGS. Then scipy's trust-region
    Newton method leaves saddles and passes plateaus and narrow valleys. Newton steps follow as long as they make the
    gradient smaller. Models
    of more than ``dense_limit`` parameters use products with the Hessian. There need not be a critical point:
    cross-entropy on separable data falls without end. The result says whether one was found.

    Args:
        model: the initial model; it stays as it is.
        loss: see `split_certificate`.
        data: see `split_certificate`.
        reduction: see `split_certificate`.
        steps: the largest number of steps of the trust-region method.
        dense_limit: see `split_certificate`.
        weight_decay: alpha of a penalty ``alpha / 2 ||theta||^2`` over all trainable parameters.
        split: layer and index of a neuron that is to be split, for `split_certificate` with a weight decay. Its penalty
            is then that of two equal copies.
        next_layer: the layer that reads the neuron, if it cannot be found automatically.

    Raises:
        ValueError: the data cannot be used, or the model has no trainable parameters.
        TypeError: a batch is neither a pair nor a dict.
        ImportError: scipy is not installed.

    Examples:
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> critical = find_critical_point(model, nn.MSELoss(reduction="sum"), (x, y))
        >>> round(abs(critical.model[2].weight.item()), 4), critical.converged
        (1.2693, True)
    """
    copied = float64_copy(model)
    if not trainable(copied):
        raise ValueError(
            "every parameter of the model is frozen (requires_grad=False): set requires_grad=True for those to train."
        )
    steps, dense_limit = require_whole("steps", steps), require_whole("dense_limit", dense_limit, 0)
    objective = Objective(loss, data, reduction, weight_decay)
    if split is not None:
        hidden = find_hidden_layer(copied, split[0], next_layer)
        objective.halves = HalvedNeuron.of(hidden, check_neuron(hidden, split[1]))
    is_dense = sum(p.numel() for p in trainable(copied)) <= dense_limit
    length = float(flat(trainable(copied)).detach().norm())
    with torch.enable_grad():
        start = objective.value(copied)
        for _ in descend(copied, objective, 100):
            pass
        message = _trust_region(copied, objective, steps, is_dense)
        distance = _newton(copied, objective) if is_dense else None
        value, gradient = objective.value_and_gradient(copied)
    relative = relative_gradient(copied, value, gradient)
    growth = float(flat(trainable(copied)).detach().norm()) / max(length, 1e-300)
    if abs(value) < FITTED * abs(start):
        message += f", and the loss {value:.1e} is nearly a perfect fit, where the relative gradient is large"
    converged, reason = _conclusion(relative, distance, growth, message)
    return CriticalPoint(copied, value, relative, converged, reason)


def _conclusion(relative: float, distance: float | None, growth: float, message: str) -> tuple[bool, str]:
    """Return whether the search converged, and why."""
    if distance is None and relative <= GRADIENT_TOLERANCE:
        return True, f"the relative gradient is {relative:.1e}"
    if distance is not None and distance <= DISTANCE_TOLERANCE and growth < GROWTH:
        return True, f"a Newton step has {distance:.1e} of the parameters' length"
    seen = f"the relative gradient is {relative:.1e}"
    if distance is not None:
        seen += f" and a Newton step has {distance:.1e} of the parameters' length"
    if growth >= GROWTH:
        return False, f"the weights grew {growth:.0e} times: the loss falls without end; add a weight decay"
    advice = "the loss may fall without end, or needs more steps: raise steps, start elsewhere or add a weight decay"
    return False, f"{seen} ({message}); {advice}"


def _trust_region(model: nn.Module, objective: Objective, steps: int, is_dense: bool) -> str:
    """Move the model by scipy's trust-region Newton method; return scipy's message."""
    with optional_packages("find_critical_point", "landscape"):
        from scipy.optimize import minimize
    parameters = trainable(model)
    start = flat(parameters).detach()

    def tensor(vector: Any) -> Tensor:
        return torch.as_tensor(vector, dtype=start.dtype).to(start.device)

    def go(vector: Any) -> None:
        move(model, tensor(vector) - flat(parameters).detach())

    def value_and_gradient(vector: Any) -> tuple[float, Any]:
        go(vector)
        value, gradient = objective.value_and_gradient(model)
        return value, gradient.cpu().numpy()

    def hessian(vector: Any) -> Any:
        go(vector)
        return objective.hessian(model).cpu().numpy()

    def product(vector: Any, direction: Any) -> Any:
        go(vector)
        return objective.hessian_product(model, tensor(direction)).cpu().numpy()

    value = objective.value(model)
    second = {"method": "trust-exact", "hess": hessian} if is_dense else {"method": "trust-ncg", "hessp": product}
    # From here on, Newton steps converge quadratically, but the loss hardly changes.
    goal = 1e-6 * abs(value) / max(float(start.norm()), 1.0)
    reached = start.cpu().numpy()

    def keep(vector: Any) -> None:
        nonlocal reached
        reached = vector.copy()

    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            result = minimize(
                value_and_gradient, reached, jac=True, callback=keep, options={"maxiter": steps, "gtol": goal}, **second
            )
        reached, message = result.x, str(result.message).rstrip(".").lower()
    except ValueError as error:
        if "infs or NaNs" not in str(error):
            raise
        message = "the steps became infinite"  # scipy's matrix is singular to rounding where a loss vanishes
    go(reached)
    if not objective.value(model) <= value:
        move(model, start - flat(parameters).detach())
    return message


def _newton(model: nn.Module, objective: Objective, steps: int = 30) -> float:
    """Take Newton steps while they make the gradient smaller; return the length of the next one, relative."""
    gradient = objective.value_and_gradient(model)[1]
    for remaining in reversed(range(steps)):
        step = _step(model, objective, gradient)
        distance = float(step.norm()) / max(float(flat(trainable(model)).detach().norm()), 1e-300)
        move(model, step)
        new = objective.value_and_gradient(model)[1]
        if not new.norm() < gradient.norm():
            move(model, -step)
            return distance
        small_gain = float(new.norm()) > float(gradient.norm()) / PROGRESS
        gradient = new
        if small_gain or not remaining:
            break
    step = _step(model, objective, gradient)
    return float(step.norm()) / max(float(flat(trainable(model)).detach().norm()), 1e-300)


def _step(model: nn.Module, objective: Objective, gradient: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(objective.hessian(model))
    return newton_step(values, vectors, gradient, float(flat(trainable(model)).detach().norm()))
