"""Curves between latent codes: end points fixed, linear in their coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .safe_norm import row_norms

POLYNOMIAL, CUBIC, NODES = "polynomial", "cubic", "nodes"
CURVES = (POLYNOMIAL, CUBIC, NODES)


@dataclass(frozen=True)
class LatentCurve:
    """z(t) = (1 - t) z0 + t z1 + sum_k B_k(t) c_k on [0, 1], with B_k(0) = B_k(1) = 0.

    - ``"polynomial"``: B_k = u^k - (2^k - 1) u + 2^k - 2 with u = 1 + t, k = 2 .. degree (arXiv 2203.01035);
    - ``"cubic"``: the natural cubic splines that are 1 at one of degree - 1 equidistant knots and 0 at the others;
    - ``"nodes"``: hats, 1 at one inner point of a grid of ``points`` points; degree is not used.

    Attributes:
        kind: one of the three.
        degree: see above, at least 2.
        points: the size of the grid of ``"nodes"``.
        sphere: turn the radius into (1 - t) ||z0|| + t ||z1||.
    """

    kind: str
    degree: int
    points: int
    sphere: bool

    @property
    def size(self) -> int:
        """Return the number of coefficients."""
        return self.points - 2 if self.kind == NODES else self.degree - 1

    def at(self, times: Tensor, z0: Tensor, z1: Tensor, coefficients: Tensor) -> Tensor:
        """Return the latent codes at some times.

        Args:
            times: (pairs, n), each row from exactly 0 to exactly 1.
            z0: (pairs, dim).
            z1: (pairs, dim).
            coefficients: (pairs, size, dim).

        Returns:
            (pairs, n, dim); the first and last are z0 and z1 bit for bit.
        """
        t = times[..., None]
        z = (1 - t) * z0[:, None] + t * z1[:, None] + self._basis(times) @ coefficients
        if self.sphere:
            radius = (1 - times) * row_norms(z0)[:, None] + times * row_norms(z1)[:, None]
            length = row_norms(z.flatten(0, 1)).reshape(times.shape)
            z = z * (radius / length.clamp(min=torch.finfo(z.dtype).tiny))[..., None]
        return torch.cat([z0[:, None], z[:, 1:-1], z1[:, None]], 1)

    def _basis(self, times: Tensor) -> Tensor:
        """Return the basis functions at the times, (pairs, n, size)."""
        if self.kind == POLYNOMIAL:
            u = 1 + times
            terms = [u**k - (2**k - 1) * u + 2**k - 2 for k in range(2, self.degree + 1)]
            return torch.stack(terms, -1)
        knots = torch.arange(1, self.size + 1, dtype=times.dtype, device=times.device)
        position = times[..., None] * (self.size + 1)
        hats = (1 - (position - knots).abs()).clamp(min=0)
        return hats if self.kind == NODES else self._splines(position, knots, hats)

    def _splines(self, position: Tensor, knots: Tensor, hats: Tensor) -> Tensor:
        """Return natural cubic splines from hat functions.

        With knots one apart, y'' solves the tridiagonal system (1, 4, 1) y'' = 6 (second differences of y).
        """
        ones = torch.ones(self.size - 1, dtype=position.dtype, device=position.device)
        neighbors = torch.diag(ones, 1) + torch.diag(ones, -1)
        identity = torch.eye(self.size, dtype=position.dtype, device=position.device)
        curvatures = torch.linalg.solve(4 * identity + neighbors, 6 * (neighbors - 2 * identity))
        # Between two knots y is the straight line plus (h^3 - h) y'' / 6 for the weight h of either knot.
        return hats + ((hats**3 - hats) / 6) @ curvatures


def slerp(times: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """Interpolate spherically: constant angular speed, linear radius.

    Between opposite directions, the path turns through the coordinate axis that is farthest from them.

    Args:
        times: (pairs, n), each row from exactly 0 to exactly 1.
        z0: (pairs, dim).
        z1: (pairs, dim).

    Returns:
        (pairs, n, dim); the first and last are z0 and z1 bit for bit.
    """
    radius0, radius1 = row_norms(z0)[:, None], row_norms(z1)[:, None]
    tiny = torch.finfo(z0.dtype).tiny
    start, end = z0 / radius0.clamp(min=tiny), z1 / radius1.clamp(min=tiny)
    axis = torch.zeros_like(start).scatter_(1, start.abs().argmin(1, keepdim=True), 1)
    orthogonal = end - (start * end).sum(1, keepdim=True) * start
    is_parallel = row_norms(orthogonal)[:, None] < 10 * torch.finfo(z0.dtype).eps
    orthogonal = torch.where(is_parallel, axis - (start * axis).sum(1, keepdim=True) * start, orthogonal)
    orthogonal = orthogonal / row_norms(orthogonal)[:, None].clamp(min=tiny)
    # More accurate than the arc cosine for directions that are almost equal or opposite.
    angle = 2 * torch.atan2(row_norms(start - end), row_norms(start + end))
    angles = (times * angle[:, None])[..., None]
    direction = angles.cos() * start[:, None] + angles.sin() * orthogonal[:, None]
    z = direction * ((1 - times) * radius0 + times * radius1)[..., None]
    return torch.cat([z0[:, None], z[:, 1:-1], z1[:, None]], 1)
