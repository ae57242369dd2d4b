"""Random directions ``u = W A phi`` in pre-activation space.

kappa is the mean of ``u^T (d2L/dz2) u`` over random m x m matrices A with independent zero-mean unit-variance
entries. Rows (items, tokens) that the tail couples must share one A; rows that it does not couple may each have
their own, which has less variance (docs/mathematics.md, form b).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .batch import Seeds
from .coupling import Coupling
from .curvature import wide


def draw(
    features: Sequence[Tensor],
    linear_map: Callable[[Tensor], Tensor],
    coupling: Coupling,
    seeds: Seeds,
    probe: int = 0,
) -> list[Tensor]:
    """A random direction for every call of the layer.

    The signs are a function of seeds, probe and shapes alone: a block that is computed again under gradient
    checkpointing gets the same ones, and so do coupled calls of the layer.

    Args:
        features: phi of every call, shapes ``(..., m)``.
        linear_map: W times vectors, ``(..., m)`` to ``(..., d)``.
        coupling: which rows share a matrix.
        seeds: where the signs come from.
        probe: number of the probe.
    """
    numbers = seeds.shared if coupling is Coupling.BATCH else seeds.own
    directions = []
    for phi in features:
        generator = seeds.generator(numbers, probe, phi.device)
        r_shape, a_shape = sign_shapes(phi, coupling)
        r = _signs(r_shape, phi, generator)
        a = None if a_shape is None else _signs(a_shape, phi, generator)
        directions.append(direction(phi, linear_map, r, a))
    return directions


def direction(features: Tensor, linear_map: Callable[[Tensor], Tensor], r: Tensor, a: Tensor | None) -> Tensor:
    """The direction u for given signs.

    Without ``a`` (uncoupled rows): ``u_i = ||phi_i|| W r_i``. With it, A = r a^T: ``u_t = (a . phi_t) W r``.
    Both are unbiased for what they are used for; u stays in the graph through phi and W.

    Args:
        features: phi, shape ``(..., m)``.
        linear_map: W times vectors, ``(..., m)`` to ``(..., d)``.
        r: signs that broadcast to phi.
        a: signs that broadcast to phi, or None.

    Examples:
        >>> import torch
        >>> phi, r = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
        >>> direction(phi, lambda v: v, r, None)
        tensor([[ 5., -5.]])
        >>> direction(phi, lambda v: v, r, torch.tensor([1.0, 1.0]))
        tensor([[ 7., -7.]])
    """
    phi = features.to(wide(features.dtype))
    amount = torch.linalg.vector_norm(phi, dim=-1, keepdim=True) if a is None else (phi * a).sum(-1, keepdim=True)
    with torch.autocast(phi.device.type, enabled=False):
        return amount * linear_map(r)


def sign_shapes(features: Tensor, coupling: Coupling) -> tuple[torch.Size, torch.Size | None]:
    """Shapes of the signs r and a that `direction` takes; a is None for uncoupled rows."""
    m = features.shape[-1]
    if coupling is Coupling.ROWS:
        return features.shape, None
    if coupling is Coupling.ITEMS:
        one_an_item = torch.Size([features.shape[0], *[1] * (features.dim() - 2), m])
        return one_an_item, one_an_item
    return torch.Size([m]), torch.Size([m])


def _signs(shape: torch.Size, like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, shape, generator=generator, device=like.device, dtype=torch.int8)
    return signs.to(wide(like.dtype)).mul_(2).sub_(1)
