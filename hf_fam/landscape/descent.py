"""Descent during which the loss never rises."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .objective import Objective, move, trainable

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
