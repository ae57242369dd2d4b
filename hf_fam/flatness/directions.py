"""Random directions ``u = W A phi`` in pre-activation space.

kappa is the mean of ``u^T (d2L/dz2) u`` over random m x m matrices A with independent zero-mean unit-variance
entries. Rows (items, tokens, positions) that the tail couples must share one A. Uncoupled rows may each have their own,
which lowers the variance (docs/estimators.md, docs/coupled-rows.md). Each group of a convolution has its own A.
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

# The random matrix of coupled rows has blocks (docs/coupled-rows.md), one for this many outputs of the layer. They then
# cost far less than the layer.
_OUTPUTS_OF_A_BLOCK = 16
_FEWEST_BLOCKS, _MOST_BLOCKS = 16, 64


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
        r = _signs(shape, phi, seeds, (probe, "r"))
        blocks = block_count(linear_map.in_features, linear_map.out_features // linear_map.groups)
        a = _block_signs(shape, blocks, phi, seeds, (probe, "a"))
        directions.append(direction(phi, linear_map, r, a))
    return directions


def block_count(rows: int, outputs: int) -> int:
    """Return the number of blocks of a random matrix, for coupled rows.

    It depends on the layer alone, so that it is the same in every process and micro-batch.

    Args:
        rows: number of rows of the matrix.
        outputs: number of outputs of a group of the layer.

    Examples:
        >>> block_count(384, 384), block_count(8, 384), block_count(17, 3)
        (24, 8, 9)
    """
    most = min(max(outputs // _OUTPUTS_OF_A_BLOCK, _FEWEST_BLOCKS), _MOST_BLOCKS)
    return math.ceil(rows / math.ceil(rows / most))


def direction(features: Tensor, linear_map: LinearMap, r: Tensor, a: Tensor | None) -> Tensor:
    """Return the direction u for fixed signs, differentiable to phi and W.

    Without ``a``, for uncoupled rows: ``u_t = ||phi_t|| W r_t``. With ``a``, for coupled rows, row i of A is
    ``r_i a_b``, where b is the block of i: ``u_t = sum_b (a_b . phi_t) W_b r_b``.

    Args:
        features: phi, in the layer's layout.
        linear_map: W, and how it acts on features.
        r: signs; without ``a``, shape ``(..., G m)``, else ``(G m,)`` or ``(items, G m)``.
        a: one vector of signs for every block, shape ``(blocks, G m)`` or ``(items, blocks, G m)``; or None.

    Examples:
        >>> import torch
        >>> from hf_fam.layer.linear_map import RowMap
        >>> identity = RowMap(2, 2, lambda: torch.eye(2))
        >>> phi, r = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
        >>> direction(phi, identity, r, None)
        tensor([[ 5., -5.]])
        >>> direction(phi, identity, r[0], torch.tensor([[1.0, 1.0], [1.0, -1.0]]))  # a block for each feature
        tensor([[7., 1.]])
    """
    phi = features.to(wide(features.dtype))
    with torch.autocast(phi.device.type, enabled=False):
        if a is None:
            return linear_map.scaled(linear_map.norms(phi), linear_map.times(r))
        outputs = linear_map.times_blocks(r.expand(*a.shape[:-2], -1), a.shape[-2])
        rows = "..." if a.dim() == 2 else "i..."
        items = rows.removesuffix("...")
        u = torch.einsum(f"{rows}gb,{items}gbd->{rows}gd", linear_map.projections(phi, a), outputs)
        return u.flatten(-2)


def draw_for_trace(
    features: Sequence[Tensor],
    pre_activations: Sequence[Tensor],
    linear_map: LinearMap,
    coupling: Coupling,
    seeds: Seeds,
    probe: int = 0,
) -> list[Tensor]:
    """Return directions u whose mean ``u^T (d2L/dz2) u`` is the trace of the Hessian.

    Tr H is the trace of the Hessian by the weight. The directions are those of kappa with the identity in place of W.
    For uncoupled rows they are ``u_t = ||phi_t|| r_t``, with signs r in R^d. For coupled rows they are
    ``u_ts = r_s (a_b . phi_t)``, where b is the block of output s.

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
            r = _signs(z.shape, phi, seeds, (probe, "trace r"))
            directions.append(linear_map.scaled(linear_map.norms(phi_wide), r))
            continue
        shape = linear_map.vector_shape(phi, an_item=coupling is Coupling.ITEMS)
        outputs = z.shape[-1] // linear_map.groups
        blocks = block_count(outputs, outputs)
        a = _block_signs(shape, blocks, phi, seeds, (probe, "trace a"))
        amounts = linear_map.projections(phi_wide, a).repeat_interleave(math.ceil(outputs / blocks), -1)[..., :outputs]
        r = _signs(torch.Size([*shape[:-1], z.shape[-1]]), phi, seeds, (probe, "trace r"))
        r = r.view(*shape[:-1], *[1] * (z.dim() - len(shape)), -1)
        directions.append(amounts.flatten(-2) * r)
    return directions


def _row_direction(features: Tensor, linear_map: LinearMap, signs: Tensor) -> Tensor:
    """Return ``u_t = ||phi_t|| W r_t``, with different signs for every row."""
    phi = features.to(wide(features.dtype))
    with torch.autocast(phi.device.type, enabled=False):
        return linear_map.scaled(linear_map.norms(phi), linear_map.times_signs(signs))


def _block_signs(shape: torch.Size, blocks: int, like: Tensor, seeds: Seeds, stream: tuple[int | str, ...]) -> Tensor:
    """Return signs of shape ``(..., blocks, m)``, for a shape ``(..., m)`` of one vector."""
    a = _signs(torch.Size([*shape[:-1], blocks * shape[-1]]), like, seeds, stream)
    return a.unflatten(-1, (blocks, -1))


def _signs(shape: torch.Size, like: Tensor, seeds: Seeds, stream: tuple[int | str, ...]) -> Tensor:
    """Return signs of shape ``(items, ..., m)``, or ``(m,)`` if all items share them."""
    dtype = wide(like.dtype)
    if len(shape) == 1:
        return signs(key((*seeds.numbers, *stream), like.device), shape[-1], dtype)
    keys = seeds.row_keys(math.prod(shape[:-1]), shape[0], stream, like.device)
    return signs(keys, shape[-1], dtype).view(shape)
