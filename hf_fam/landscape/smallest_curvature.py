"""The extreme eigenvalues of a Hessian, from the full matrix or by Lanczos iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .objective import Objective, trainable


@dataclass(frozen=True)
class Curvature:
    """The ends of a Hessian's spectrum at one point.

    Attributes:
        smallest: the smallest eigenvalue.
        largest: the largest eigenvalue.
        newton_distance: distance to the critical point: the length of the Newton step (an upper bound for Lanczos)
            over that of the parameters.
        method: the method that computed the numbers.
        failure: why the method failed, or empty.
    """

    smallest: float
    largest: float
    newton_distance: float
    method: str
    failure: str = ""

    @property
    def relative(self) -> float:
        """Return the smallest eigenvalue over the largest absolute one."""
        scale = max(abs(self.smallest), abs(self.largest))
        return self.smallest / scale if scale else 0.0


def extreme_curvature(model: nn.Module, objective: Objective, gradient: Tensor, dense_limit: int) -> Curvature:
    """Return the smallest and the largest eigenvalue of the objective's Hessian.

    The Hessian is taken in all trainable parameters.

    Args:
        model: in float64.
        objective: the loss over the data.
        gradient: the gradient at the point, one vector.
        dense_limit: up to this many parameters, the matrix is computed in full.
    """
    length = float(torch.cat([p.detach().reshape(-1) for p in trainable(model)]).norm())
    if len(gradient) <= dense_limit:
        values, vectors = torch.linalg.eigh(objective.hessian(model))
        step = float(((vectors.T @ gradient) / values).norm())
        distance = step / length if math.isfinite(step) else math.inf
        return Curvature(float(values[0]), float(values[-1]), distance, "full Hessian")
    return _lanczos(model, objective, gradient, length)


def _lanczos(model: nn.Module, objective: Objective, gradient: Tensor, length: float) -> Curvature:
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ImportError:
        failure = f"the Hessian of {len(gradient)} parameters needs scipy, which is not installed"
        return Curvature(0.0, 0.0, 0.0, "none", f"{failure}: pip install hf-fam[landscape], or raise dense_limit")

    def product(vector: object) -> object:
        tensor = torch.as_tensor(vector, dtype=gradient.dtype).reshape(-1).to(gradient.device)
        return objective.hessian_product(model, tensor).cpu().numpy()

    size = len(gradient)
    operator = LinearOperator((size, size), matvec=product, dtype="float64")
    start = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    try:
        largest = float(eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)[0])
        smallest = float(eigsh(operator, k=1, which="SA", v0=start, maxiter=2000, return_eigenvectors=False)[0])
    except ArpackNoConvergence as error:
        return Curvature(0.0, 0.0, 0.0, "Lanczos", f"Lanczos iteration for H(theta*) did not converge: {error}")
    distance = float(gradient.norm()) / abs(smallest) / length if smallest else math.inf
    return Curvature(smallest, largest, distance, "Lanczos iteration, extreme eigenvalues only")
