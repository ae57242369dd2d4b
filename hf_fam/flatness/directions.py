"""Random directions ``u = W A phi`` in pre-activation space.

kappa is the mean of ``u^T (d2L/dz2) u`` over random m x m matrices A with independent zero-mean unit-variance
entries. Rows (items, tokens, positions) that the tail couples must share one A. Uncoupled rows may each have their own,
which lowers the variance (docs/estimators.md). Each group of a convolution has its own A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..calculus.derivatives import wide
from ..calculus.signs import key, signs
from ..layer.linear_map import LinearMap
from .batch import Seeds
from .coupling import Coupling


def draw(
    features: Sequence[Tensor], linear_map: LinearMap, coupling: Coupling, seeds: Seeds, probe: int = 0
) -> list[Tensor]:
    """Return a random direction for every call of the layer.

    The signs are a function of the seeds and the probe. If items are uncoupled, they also depend on the item and the
    position in it. The split of a step's batch into micro-batches and processes makes no difference. Blocks that
    gradient checkpointing recomputes, and coupled calls of the layer, get the same signs.

    Args:
        features: phi of every call, in the layer's layout.
        linear_map: W, and how it acts on features.
        coupling: which rows share a matrix A.
        seeds: seeds of the signs.
        probe: number of the probe.

    Returns:
        u for every call, channels last, shapes ``(..., d)``.
    """
    directions = []
    for phi in features:
        if coupling is Coupling.ROWS:
            directions.append(
                _row_direction(phi, linear_map, _signs(linear_map.sign_shape(phi), phi, seeds, (probe, "r")))
            )
            continue
        shape = linear_map.vector_shape(phi, an_item=coupling is Coupling.ITEMS)
        r, a = (_signs(shape, phi, seeds, (probe, name)) for name in ("r", "a"))
        directions.append(direction(phi, linear_map, r, a))
    return directions


def direction(features: Tensor, linear_map: LinearMap, r: Tensor, a: Tensor | None) -> Tensor:
    """Return the direction u for fixed signs, differentiable to phi and W.

    Without ``a``, for uncoupled rows: ``u_t = ||phi_t|| W r_t``. With ``a``, for coupled rows, A = r a^T and
    ``u_t = (a . phi_t) W r``.

    Args:
        features: phi, in the layer's layout.
        linear_map: W, and how it acts on features.
        r: signs that broadcast to the rows, shape ``(..., G m)``.
        a: signs, one vector for all rows or one for each item (`LinearMap.vector_shape`), or None.

    Examples:
        >>> import torch
        >>> from hf_fam.layer.linear_map import RowMap
        >>> identity = RowMap(2, 2, lambda: torch.eye(2))
        >>> phi, r = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
        >>> direction(phi, identity, r, None)
        tensor([[ 5., -5.]])
        >>> direction(phi, identity, r, torch.tensor([1.0, 1.0]))
        tensor([[ 7., -7.]])
    """
    phi = features.to(wide(features.dtype))
    with torch.autocast(phi.device.type, enabled=False):
        scales = linear_map.norms(phi) if a is None else linear_map.projections(phi, a)
        return linear_map.scaled(scales, linear_map.times(r))


def draw_for_trace(
    features: Sequence[Tensor],
    pre_activations: Sequence[Tensor],
    linear_map: LinearMap,
    coupling: Coupling,
    seeds: Seeds,
    probe: int = 0,
) -> list[Tensor]:
    """Return directions u whose mean ``u^T (d2L/dz2) u`` is the trace of the Hessian.

    Tr H is the trace of the Hessian by the weight. ``u_t = ||phi_t|| r_t`` for uncoupled rows and ``(a . phi_t) r`` for
    coupled ones, with signs r in R^d: the directions of kappa with the identity in place of W.

    Args:
        features: phi of every call, in the layer's layout.
        pre_activations: z of every call, channels last.
        linear_map: how W acts on features.
        coupling: which rows share signs.
        seeds: seeds of the signs.
        probe: number of the probe.
    """
    directions = []
    for phi, z in zip(features, pre_activations, strict=True):
        phi_wide = phi.to(wide(phi.dtype))
        if coupling is Coupling.ROWS:
            scales, r = linear_map.norms(phi_wide), _signs(z.shape, phi, seeds, (probe, "trace r"))
        else:
            shape = linear_map.vector_shape(phi, an_item=coupling is Coupling.ITEMS)
            scales = linear_map.projections(phi_wide, _signs(shape, phi, seeds, (probe, "trace a")))
            r = _signs(torch.Size([*shape[:-1], z.shape[-1]]), phi, seeds, (probe, "trace r")).expand(z.shape)
        directions.append(linear_map.scaled(scales, r))
    return directions


def _row_direction(features: Tensor, linear_map: LinearMap, signs: Tensor) -> Tensor:
    """Return ``u_t = ||phi_t|| W r_t``, with different signs for every row."""
    phi = features.to(wide(features.dtype))
    with torch.autocast(phi.device.type, enabled=False):
        return linear_map.scaled(linear_map.norms(phi), linear_map.times_signs(signs))


def _signs(shape: torch.Size, like: Tensor, seeds: Seeds, stream: tuple[int | str, ...]) -> Tensor:
    """Return signs of shape ``(items, ..., m)``, or ``(m,)`` if all items share them."""
    dtype = wide(like.dtype)
    if len(shape) == 1:
        return signs(key((*seeds.numbers, *stream), like.device), shape[-1], dtype)
    keys = seeds.row_keys(math.prod(shape[:-1]), shape[0], stream, like.device)
    return signs(keys, shape[-1], dtype).view(shape)
