"""Descent during which the loss never rises, and the search for a critical point."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .objective import Loss, Objective, float64_copy, move, trainable

MEMORY = 10
HALVINGS = 40


def descend(model: nn.Module, objective: Objective, steps: int, samples: int = 1) -> Iterator[tuple[float, float]]:
    """Take L-BFGS steps in place, as long as the loss falls.

    Yields the length and the loss of each sampled point.

    Args:
        model: in float64; its trainable parameters are moved.
        objective: the loss over the data.
        steps: the largest number of steps.
        samples: a step is shortened until the loss does not increase between this many points along it.
    """
    loss, gradient = objective.value_and_gradient(model)
    history: deque[tuple[Tensor, Tensor]] = deque(maxlen=MEMORY)
    for _ in range(steps):
        direction = -_two_loop_recursion(gradient, history)
        if not direction @ gradient < 0:
            history.clear()
            direction = -gradient
        # The first step has no curvature information: take about the length that halves the loss of a quadratic bowl.
        scale = 1.0 if history else min(1.0, 1.0 / float(gradient.norm() + 1e-300))
        step_and_losses = search(
            model, objective, direction * scale, loss, samples, slope=float(direction @ gradient) * scale
        )
        if step_and_losses is None and history:
            history.clear()
            continue
        if step_and_losses is None:
            return
        step, losses = step_and_losses
        yield from ((float(step.norm()) / samples, value) for value in losses)
        loss, new = objective.value_and_gradient(model)
        if step @ (new - gradient) > 1e-14 * step.norm() * (new - gradient).norm():
            history.append((step, new - gradient))
        gradient = new


def search(
    model: nn.Module, objective: Objective, direction: Tensor, loss: float, samples: int, slope: float = 0.0
) -> tuple[Tensor, list[float]] | None:
    """Halve a step until the loss falls along it, and take the step.

    The result is None if the loss never falls; then the model stays as it is.

    Args:
        model: moved in place.
        objective: the loss.
        direction: the longest step to try.
        loss: the loss at the start.
        samples: points along the step that must not increase.
        slope: directional derivative. The loss must fall by at least 1e-4 of the decrease that it predicts.
    """
    start = [p.detach().clone() for p in trainable(model)]
    for halving in range(HALVINGS):
        step = direction / 2**halving
        losses = [loss]
        while len(losses) <= samples and losses[-1] <= losses[max(len(losses) - 2, 0)]:
            move(model, step / samples)
            losses.append(objective.value(model))
        falls = len(losses) > samples and losses[-1] <= losses[-2] and losses[-1] < loss
        if falls and losses[-1] <= loss + 1e-4 * slope / 2**halving:
            return step, losses[1:]
        with torch.no_grad():
            for parameter, value in zip(trainable(model), start, strict=True):
                parameter.copy_(value)
    return None


def find_critical_point(
    model: nn.Module,
    loss: Loss | None,
    data: Any,
    *,
    reduction: str | None = None,
    steps: int = 2000,
    dense_limit: int = 1000,
) -> nn.Module:
    """Return a copy of the model, in float64, at a critical point of the loss.

    The point is as precise as float64 allows.

    L-BFGS runs in evaluation mode over all data. With up to ``dense_limit`` parameters, Newton steps follow as long as
    they make the gradient smaller. There need not be such a point nearby: cross-entropy on separable data falls
    without end. `split_certificate` reports the gradient.

    Args:
        model: the initial model; it stays as it is.
        loss: see `split_certificate`.
        data: see `split_certificate`.
        reduction: see `split_certificate`.
        steps: the largest number of L-BFGS steps.
        dense_limit: see `split_certificate`.

    Raises:
        ValueError: the data cannot be used, or the model has no trainable parameters.
        TypeError: a batch is neither a pair nor a dict.

    Examples:
        >>> x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None]
        >>> y = 2 * x.tanh() - (4 * x).tanh()
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
        >>> critical = find_critical_point(model, nn.MSELoss(reduction="sum"), (x, y))
        >>> round(abs(critical[2].weight.item()), 4)
        1.2693
    """
    copied = float64_copy(model)
    if not trainable(copied):
        raise ValueError(
            "every parameter of the model is frozen (requires_grad=False): set requires_grad=True for those to train."
        )
    objective = Objective(loss, data, reduction)
    with torch.enable_grad():
        for _ in descend(copied, objective, steps):
            pass
        if sum(p.numel() for p in trainable(copied)) <= dense_limit:
            _newton(copied, objective)
    return copied


def _newton(model: nn.Module, objective: Objective, steps: int = 20) -> None:
    """Take Newton steps while they at least halve the gradient."""
    gradient = objective.value_and_gradient(model)[1]
    for _ in range(steps):
        hessian = objective.hessian(model)
        step = -(torch.linalg.pinv(hessian, rtol=1e-13, hermitian=True) @ gradient)
        move(model, step)
        new = objective.value_and_gradient(model)[1]
        if not new.norm() < gradient.norm():
            move(model, -step)
            return
        small_gain = new.norm() > gradient.norm() / 2
        gradient = new
        if small_gain:
            return


def _two_loop_recursion(gradient: Tensor, history: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS approximation of H^-1 g.

    Nocedal and Wright, algorithm 7.4.
    """
    q = gradient.clone()
    alphas = []
    for s, y in reversed(history):
        alphas.append((s @ q) / (s @ y))
        q -= alphas[-1] * y
    if history:
        s, y = history[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), alpha in zip(history, reversed(alphas), strict=True):
        q += s * (alpha - (y @ q) / (s @ y))
    return q
