"""Minimize an objective by L-BFGS, and say so when it did not converge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from sklearn.exceptions import ConvergenceWarning

from .objective import Float64s, Objective

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


def solve(objective: Objective, start: Float64s, tol: float, max_iter: int, verbose: int) -> Solution:
    """Return the minimizer that L-BFGS finds from a start.

    Args:
        objective: value and gradient.
        start: the first parameters.
        tol: the largest entry of the gradient at which it stops.
        max_iter: the most steps.
        verbose: print the value and the gradient every so many steps, and at the end; 0 prints nothing.

    Warns:
        ConvergenceWarning: the gradient is larger than ``tol`` at the end; the message says what to do.
    """
    steps = 0

    def report(intermediate_result: OptimizeResult) -> None:
        nonlocal steps
        steps += 1
        if verbose and steps % verbose == 0:
            print(f"step {steps}: objective {intermediate_result.fun:.8g}")

    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        callback=report,
        options={
            "gtol": tol,
            "ftol": 0.0,
            "maxiter": max_iter,
            "maxfun": 10**9,
            "maxcor": _MEMORY,
            "maxls": _LINE_SEARCH_STEPS,
        },
    )
    largest = float(np.abs(result.jac).max())
    if verbose:
        print(f"{result.nit} steps: objective {result.fun:.8g}, largest entry of the gradient {largest:.2g}")
    if largest > tol:
        warnings.warn(_remedy(objective, largest, tol, result), ConvergenceWarning, stacklevel=3)
    return Solution(result.x, float(result.fun), result.nit)


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
