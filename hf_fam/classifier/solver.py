"""Minimize an objective by L-BFGS in coordinates that suit it, and say so when it did not converge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from sklearn.exceptions import ConvergenceWarning

from .objective import Float64s, Objective
from .spectrum import Coordinates, Spectrum

# Curvature pairs. More need fewer steps, and their cost does not grow with the number of samples.
_MEMORY = 20
_LINE_SEARCH_STEPS = 50


@dataclass(frozen=True)
class Solution:
    """The end of a minimization.

    Attributes:
        parameters: where it ended.
        value: the objective there.
        steps: L-BFGS steps that were made.
    """

    parameters: Float64s
    value: float
    steps: int


def solve(
    objective: Objective,
    start: Float64s,
    spectrum: Spectrum,
    tol: float,
    max_iter: int,
    verbose: int = 0,
    decrease: float = 0.0,
) -> Solution:
    """Return the minimizer that L-BFGS finds from a start.

    Args:
        objective: value and gradient.
        start: the first parameters.
        spectrum: of the features, or of those of a similar training set.
        tol: the largest entry of the gradient at which it stops.
        max_iter: the most steps.
        verbose: steps from one printed line to the next, with a summary at the end; 0 prints nothing.
        decrease: it also stops where the objective is expected to fall by no more.

    Warns:
        ConvergenceWarning: neither was reached; the message says what to do.
    """
    mapped = _Mapped(objective, spectrum.coordinates(objective))
    first = mapped.coordinates.of_parameters(start)
    value, _ = mapped(first)
    largest, is_done, steps = mapped.largest, mapped.largest <= tol or mapped.decrease <= decrease, 0
    if is_done:
        return Solution(start, value, 0)

    def report(intermediate_result: OptimizeResult) -> None:
        nonlocal largest, is_done, steps
        steps += 1
        largest, is_done = mapped.largest, mapped.largest <= tol or mapped.decrease <= decrease
        if verbose and steps % verbose == 0:
            print(f"step {steps}: objective {intermediate_result.fun:.8g}")
        if is_done:
            raise StopIteration

    result = minimize(
        mapped,
        first,
        jac=True,
        method="L-BFGS-B",
        callback=report,
        options={
            "gtol": 0.0,
            "ftol": 0.0,
            "maxiter": max_iter,
            "maxfun": 10**9,
            "maxcor": _MEMORY,
            "maxls": _LINE_SEARCH_STEPS,
        },
    )
    if verbose:
        print(f"{steps} steps: objective {result.fun:.8g}, largest entry of the gradient {largest:.2g}")
    if not is_done:
        warnings.warn(_remedy(objective, largest, tol, result), ConvergenceWarning, stacklevel=3)
    return Solution(mapped.coordinates.to_parameters(result.x), float(result.fun), steps)


class _Mapped:
    """Value and gradient by the coordinates of a solver.

    Attributes:
        coordinates: those of the solver.
        largest: the largest entry of the last gradient by the parameters.
        decrease: by how much a Newton step would lower the objective, second derivatives being one.
    """

    def __init__(self, objective: Objective, coordinates: Coordinates) -> None:
        self.coordinates, self.largest, self.decrease = coordinates, np.inf, np.inf
        self._objective = objective
        self._last: tuple[Float64s, float, Float64s] | None = None

    def __call__(self, point: Float64s) -> tuple[float, Float64s]:
        if self._last is None or not np.array_equal(point, self._last[0]):
            value, gradient = self._objective(self.coordinates.to_parameters(point))
            self.largest = float(np.abs(gradient).max())
            mapped = self.coordinates.to_parameters(gradient)
            self.decrease = float(mapped @ mapped) / 2
            self._last = point.copy(), value, mapped
        return self._last[1:]


def _remedy(objective: Objective, largest: float, tol: float, result: OptimizeResult) -> str:
    message = (
        f"L-BFGS stopped after {result.nit} steps with {largest:.2g} as the largest entry of the gradient, above "
        f"tol={tol:g}: "
    )
    if objective.strength == 0 or objective.smoothing == 0:
        zero = "delta" if objective.strength == 0 else "smoothing"
        return message + f"with {zero}=0 there may be no optimum, so use {zero} above 0."
    if result.status == 1:
        return message + "increase max_iter or tol, or standardize the features."
    # Rounding ends the line search where the precision of the features permits no progress.
    single = objective.data.features.dtype == torch.float32
    return message + f"rounding permits no more, so {'use float64 or ' if single else ''}increase tol."
