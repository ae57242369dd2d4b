"""The extreme eigenvalues of a Hessian: in full for tiny models, by Lanczos iteration beyond."""

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
        newton_distance: length of the Newton step (an upper bound for Lanczos) over that of the parameters: how far
            away the critical point is.
        method: how the numbers were found.
        failure: why there are none, or empty.
    """

    smallest: float
    largest: float
    newton_distance: float
    method: str
    failure: str = ""

    @property
    def relative(self) -> float:
        """The smallest eigenvalue in units of the largest in absolute value."""
        scale = max(abs(self.smallest), abs(self.largest))
        return self.smallest / scale if scale else 0.0


def extreme_curvature(model: nn.Module, objective: Objective, gradient: Tensor, dense_limit: int) -> Curvature:
    """Smallest and largest eigenvalue of the Hessian of the objective in the trainable parameters.

    Args:
        model: in float64.
        objective: the loss over the data.
        gradient: the gradient at the point, one vector.
        dense_limit: up to this many parameters the matrix is computed.
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
        failure = f"the Hessian of {len(gradient)} parameters is left to scipy, which is not installed"
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
