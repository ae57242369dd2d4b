"""The diagonal blocks ``H_{s,s}`` of a layer's Hessian, one for every row of W.

For uncoupled rows of pre-activations,

    H_{s,s} = sum_i h_is phi_i phi_i^T,    h_is = d2L/dz_is^2,

so only features and curvatures must be stored. The curvatures of a head have a closed form. For other layers, each
output needs one Hessian-vector product of a batch. For coupled rows, every product with the blocks needs d
Hessian-vector products of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..calculus.derivatives import vector_products, wide

# Largest number of columns of a dense block.
LARGEST_BLOCK = 2000

# Largest number of stored entries; 2^26 are 256 MB in float32.
MAX_NUMBERS = 2**26

# Number of Hessian-vector products that are computed together.
_CHUNK = 16


class RowBlocks:
    """Sums of ``h_is phi_i phi_i^T`` in memory of a fixed size.

    Rows are stored as they are. When the memory is full, they are summed to dense blocks if those fit.

    Args:
        outputs: d.
        features: m.
        max_numbers: largest number of stored entries.

    Attributes:
        has_overflown: whether neither rows nor blocks fit, so that the contents were discarded.

    Examples:
        >>> import torch
        >>> blocks = RowBlocks(outputs=1, features=2)
        >>> blocks.add(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5], [2.0]]))
        >>> blocks.product(torch.tensor([[1.0, 1.0]]))
        tensor([[4.5000, 2.0000]])
    """

    def __init__(self, outputs: int, features: int, max_numbers: int = MAX_NUMBERS) -> None:
        self.outputs, self.features = outputs, features
        self.has_overflown = False
        self._max_rows = max(1, max_numbers // (outputs + features))
        self._blocks_fit = features <= LARGEST_BLOCK and outputs * features**2 <= max_numbers
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._row_count = 0
        self._blocks: Tensor | None = None

    def add(self, phi: Tensor, curvature: Tensor) -> None:
        """Add rows.

        Args:
            phi: features, shape ``(rows, m)``.
            curvature: h, shape ``(rows, d)``.
        """
        if self.has_overflown:
            return
        if self._row_count + len(phi) > self._max_rows:
            self._sum_rows()
        if not self.has_overflown:
            self._rows.append((phi, curvature))
            self._row_count += len(phi)

    def product(self, vectors: Tensor, start: int = 0) -> Tensor:
        """Return ``H_{s,s} v_s`` for consecutive rows s.

        Args:
            vectors: one for every row of W, shape ``(rows, m)``.
            start: the first of these rows.
        """
        rows = slice(start, start + len(vectors))
        result = torch.zeros_like(vectors)
        if self._blocks is not None:
            result += torch.einsum("sij,sj->si", self._blocks[rows], vectors)
        for phi, curvature in self._rows:
            result += ((phi @ vectors.T) * curvature[:, rows]).T @ phi
        return result

    def _sum_rows(self) -> None:
        if not self._blocks_fit:
            self.has_overflown, self._rows = True, []
            return
        for phi, curvature in self._rows:
            if self._blocks is None:
                self._blocks = phi.new_zeros(self.outputs, self.features, self.features)
            for s in range(self.outputs):
                self._blocks[s].addmm_((curvature[:, s : s + 1] * phi).T, phi)
        self._rows, self._row_count = [], 0


def row_curvatures(first: Tensor, pre_activations: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the curvatures and kappa of uncoupled rows, by d Hessian-vector products.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., d)``.
        pre_activations: z, shape ``(..., d)``.
        gram: ``W W^T``, shape ``(d, d)``.

    Returns:
        ``h_is = d2L/dz_is^2``, shape ``(..., d)``, and ``<W W^T, d2L/dz_i^2>``, shape ``(...)``. The second is kappa
        of a row divided by ``||phi_i||^2``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    dtype = wide(pre_activations.dtype)
    kappa_of_rows = torch.zeros(pre_activations.shape[:-1], dtype=dtype, device=pre_activations.device)
    outputs = pre_activations.shape[-1]
    columns = []
    for start in range(0, outputs, _CHUNK):
        chunk = range(start, min(start + _CHUNK, outputs))
        vectors = pre_activations.new_zeros(len(chunk), *pre_activations.shape)
        for k, s in enumerate(chunk):
            vectors[k, ..., s] = 1
        (products,) = _batched_products([first], [pre_activations], [vectors])
        columns += [products[k][..., s] for k, s in enumerate(chunk)]
        for k, s in enumerate(chunk):
            kappa_of_rows += products[k].to(dtype) @ gram[s].to(dtype)
    return torch.stack(columns, -1).to(dtype), kappa_of_rows


def row_block_products(
    firsts: Sequence[Tensor], features: Sequence[Tensor], calls: Sequence[Tensor], vectors: Tensor, start: int = 0
) -> Tensor:
    """Return ``H_{s,s} v_s`` of one batch under any coupling.

    This takes one Hessian-vector product for every s.

    Args:
        firsts: dL/dz of every call of the layer.
        features: rows of phi of every call and group, shapes ``(..., G, m)``.
        calls: z of every call, shapes ``(..., d)``.
        vectors: v, shape ``(rows, m)``.
        start: row of W that the first vector belongs to.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    result = torch.zeros_like(vectors)
    outputs = calls[0].shape[-1]
    for chunk_start in range(0, len(vectors), _CHUNK):
        chunk = range(chunk_start, min(chunk_start + _CHUNK, len(vectors)))
        features_of_rows = [[phi[..., (start + k) * phi.shape[-2] // outputs, :] for phi in features] for k in chunk]
        directions = []
        for j, z in enumerate(calls):
            u = z.new_zeros(len(chunk), *z.shape)
            for i, k in enumerate(chunk):
                u[i, ..., start + k] = (features_of_rows[i][j] @ vectors[k].to(features_of_rows[i][j].dtype)).to(
                    z.dtype
                )
            directions.append(u)
        products = _batched_products(firsts, calls, directions)
        for i, k in enumerate(chunk):
            for phi, h in zip(features_of_rows[i], products, strict=True):
                v = vectors.dtype
                result[k] += h[i][..., start + k].flatten().to(v) @ phi.flatten(0, -2).to(v)
    return result


def layer_product(
    firsts: Sequence[Tensor], features: Sequence[Tensor], calls: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """Return ``H v`` for the Hessian of the loss of one batch by the whole weight.

    Args:
        firsts: dL/dz of every call of the layer.
        features: rows of phi of every call and group, shapes ``(..., G, m)``.
        calls: z of every call, shapes ``(..., d)``.
        vector: v, shape ``(d, m)``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    groups = features[0].shape[-2]
    v = vector.unflatten(0, (groups, -1))
    directions = [
        torch.einsum("...gm,gdm->...gd", phi.to(v.dtype), v).flatten(-2).to(z.dtype)
        for phi, z in zip(features, calls, strict=True)
    ]
    result = torch.zeros_like(v)
    for h, phi in zip(vector_products(firsts, calls, directions, create_graph=False), features, strict=True):
        h_of_groups = h.to(v.dtype).unflatten(-1, (groups, -1)).flatten(0, -3)
        result += torch.einsum("ngd,ngm->gdm", h_of_groups, phi.to(v.dtype).flatten(0, -3))
    return result.flatten(0, 1)


def _batched_products(firsts: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """Return H v for stacks of vectors, in one call if torch supports it."""
    pairs = [(g, v) for g, v in zip(firsts, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is affine in the inputs
        return [torch.zeros_like(v) for v in vectors]
    outputs, weights = zip(*pairs, strict=True)
    try:
        products = torch.autograd.grad(
            outputs, inputs, weights, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation without batching rule, or without a second derivative
        products_of_vectors = [
            vector_products(firsts, inputs, [v[k] for v in vectors], create_graph=False) for k in range(len(vectors[0]))
        ]
        return [torch.stack(h) for h in zip(*products_of_vectors, strict=True)]
    return [torch.zeros_like(v) if h is None else h for h, v in zip(products, vectors, strict=True)]
