"""The extreme eigenvalues of a Hessian, from the full matrix or by Lanczos iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .objective import Objective, trainable
from .rounding import UNIT

# Eigenvalues below this part of the largest are zero within rounding.
SINGULAR = 1e-13


@dataclass(frozen=True)
class Curvature:
    """The ends of a Hessian's spectrum at one point.

    Attributes:
        smallest: the smallest eigenvalue.
        largest: the largest eigenvalue.
        newton_distance: distance to the critical point: the length of the Newton step over that of the parameters.
        step: the Newton step, one vector.
        method: the method that computed the numbers.
        failure: why the method failed, or empty.
    """

    smallest: float
    largest: float
    newton_distance: float
    step: Tensor
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
        step = newton_step(values, vectors, gradient, length)
        return Curvature(float(values[0]), float(values[-1]), float(step.norm()) / length, step, "full Hessian")
    return _lanczos(model, objective, gradient, length)


def newton_step(values: Tensor, vectors: Tensor, gradient: Tensor, length: float) -> Tensor:
    """Return the Newton step, without the directions in which curvature and gradient are zero within rounding.

    A direction that is flat and still has a slope stays: it makes the step long, since nobody knows where it ends.

    Args:
        values: eigenvalues of the Hessian, ``(p,)``.
        vectors: its eigenvectors, ``(p, p)``.
        gradient: ``(p,)``.
        length: of the parameters.
    """
    largest = float(values.abs().max())
    slopes = vectors.T @ gradient
    is_zero = (values.abs() <= SINGULAR * largest) & (slopes.abs() <= UNIT * largest * length)
    tiny = torch.full_like(values, max(UNIT * largest, 1e-300))
    kept = torch.where(values.abs() < tiny, tiny, values)
    return -(vectors @ (slopes / kept.masked_fill(is_zero, torch.inf)))


def _lanczos(model: nn.Module, objective: Objective, gradient: Tensor, length: float) -> Curvature:
    def failed(reason: str) -> Curvature:
        return Curvature(0.0, 0.0, 0.0, torch.zeros_like(gradient), "Lanczos", reason)

    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh, minres
    except ImportError:
        reason = f"the Hessian of {len(gradient)} parameters needs scipy, which is not installed"
        return failed(f"{reason}: pip install hf-fam[landscape], or raise dense_limit")

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
        return failed(f"Lanczos iteration for H(theta*) did not converge: {error}")
    solution = minres(operator, -gradient.cpu().numpy(), rtol=1e-8, maxiter=500)[0]
    step = torch.as_tensor(solution).to(gradient)
    method = "Lanczos iteration, extreme eigenvalues only"
    return Curvature(smallest, largest, float(step.norm()) / length, step, method)
