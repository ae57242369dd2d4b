"""The diagonal blocks ``H_{s,s}`` of a layer's Hessian, one for every row of W, and products with them.

For rows of pre-activations that are not coupled,

    H_{s,s} = sum_i h_is phi_i phi_i^T,    h_is = d2L/dz_is^2,

so that features and curvatures are all that has to be kept. The curvatures of a head are known in closed form; else
each output takes one Hessian-vector product of a batch. Coupled rows take d products of a batch every time that the
blocks are multiplied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .curvature import vector_products, wide

# No dense block has more columns than this.
LARGEST_BLOCK = 2000

# As many numbers as are kept at most; 2^26 are 256 MB in float32.
KEPT_NUMBERS = 2**26

# So many Hessian-vector products are taken together.
_TOGETHER = 16


class RowBlocks:
    """Sums of ``h_is phi_i phi_i^T`` in memory of a fixed size.

    Rows are kept as they are; when the space is full they are added up to dense blocks, if those fit.

    Args:
        outputs: d.
        features: m.
        space: how many numbers are kept at most.

    Attributes:
        overflown: neither rows nor blocks fit; the contents are gone.

    Examples:
        >>> import torch
        >>> blocks = RowBlocks(outputs=1, features=2)
        >>> blocks.add(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5], [2.0]]))
        >>> blocks.product(torch.tensor([[1.0, 1.0]]))
        tensor([[4.5000, 2.0000]])
    """

    def __init__(self, outputs: int, features: int, space: int = KEPT_NUMBERS) -> None:
        self.outputs, self.features = outputs, features
        self.overflown = False
        self._most_rows = max(1, space // (outputs + features))
        self._dense_fits = features <= LARGEST_BLOCK and outputs * features**2 <= space
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._dense: Tensor | None = None

    def add(self, phi: Tensor, curvature: Tensor) -> None:
        """Add rows.

        Args:
            phi: features, shape ``(rows, m)``.
            curvature: h, shape ``(rows, d)``.
        """
        if self.overflown:
            return
        if self._count + len(phi) > self._most_rows:
            self._fold()
        if not self.overflown:
            self._rows.append((phi, curvature))
            self._count += len(phi)

    def product(self, vectors: Tensor, start: int = 0) -> Tensor:
        """``H_{s,s} v_s`` for consecutive rows s.

        Args:
            vectors: one for every row of W, shape ``(rows, m)``.
            start: the first of these rows.
        """
        rows = slice(start, start + len(vectors))
        result = torch.zeros_like(vectors)
        if self._dense is not None:
            result += torch.einsum("sij,sj->si", self._dense[rows], vectors)
        for phi, curvature in self._rows:
            result += ((phi @ vectors.T) * curvature[:, rows]).T @ phi
        return result

    def _fold(self) -> None:
        if not self._dense_fits:
            self.overflown, self._rows = True, []
            return
        for phi, curvature in self._rows:
            if self._dense is None:
                self._dense = phi.new_zeros(self.outputs, self.features, self.features)
            for s in range(self.outputs):
                self._dense[s].addmm_((curvature[:, s : s + 1] * phi).T, phi)
        self._rows, self._count = [], 0


def row_curvatures(first: Tensor, pre_activations: Tensor) -> Tensor:
    """``h_is = d2L/dz_is^2`` of uncoupled rows: d Hessian-vector products of the tail.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., d)``.
        pre_activations: z, shape ``(..., d)``.

    Returns:
        Shape ``(rows, d)``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    outputs = pre_activations.shape[-1]
    columns = []
    for start in range(0, outputs, _TOGETHER):
        chosen = range(start, min(start + _TOGETHER, outputs))
        vectors = pre_activations.new_zeros(len(chosen), *pre_activations.shape)
        for k, s in enumerate(chosen):
            vectors[k, ..., s] = 1
        products = _many_products(first, pre_activations, vectors)
        columns += [products[k][..., s].flatten() for k, s in enumerate(chosen)]
    return torch.stack(columns, -1).to(wide(pre_activations.dtype))


def row_block_products(
    firsts: Sequence[Tensor], features: Sequence[Tensor], calls: Sequence[Tensor], vectors: Tensor, start: int = 0
) -> Tensor:
    """``H_{s,s} v_s`` of one batch, whatever rows are coupled: one Hessian-vector product for every s.

    Args:
        firsts: dL/dz of every call of the layer.
        features: rows of phi of every call and group, shapes ``(..., G, m)``.
        calls: z of every call, shapes ``(..., d)``.
        vectors: v, shape ``(rows, m)``.
        start: which row of W the first vector belongs to.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    result = torch.zeros_like(vectors)
    for k, v in enumerate(vectors):
        s = start + k
        own = [phi[..., s * phi.shape[-2] // z.shape[-1], :] for phi, z in zip(features, calls, strict=True)]
        moved = []
        for phi, z in zip(own, calls, strict=True):
            u = torch.zeros_like(z)
            u[..., s] = (phi @ v.to(phi.dtype)).to(z.dtype)
            moved.append(u)
        products = vector_products(firsts, calls, moved, create_graph=False)
        for h, phi in zip(products, own, strict=True):
            result[k] += h[..., s].flatten().to(v.dtype) @ phi.flatten(0, -2).to(v.dtype)
    return result


def layer_product(
    firsts: Sequence[Tensor], features: Sequence[Tensor], calls: Sequence[Tensor], vector: Tensor
) -> Tensor:
    """``H v`` for the Hessian of the loss of one batch by the whole weight.

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
    moved = [
        torch.einsum("...gm,gdm->...gd", phi.to(v.dtype), v).flatten(-2).to(z.dtype)
        for phi, z in zip(features, calls, strict=True)
    ]
    result = torch.zeros_like(v)
    for h, phi in zip(vector_products(firsts, calls, moved, create_graph=False), features, strict=True):
        split = h.to(v.dtype).unflatten(-1, (groups, -1)).flatten(0, -3)
        result += torch.einsum("ngd,ngm->gdm", split, phi.to(v.dtype).flatten(0, -3))
    return result.flatten(0, 1)


def _many_products(first: Tensor, inputs: Tensor, vectors: Tensor) -> Tensor:
    """H v for a stack of vectors; together where torch can, one by one where it cannot."""
    if not first.requires_grad:
        return torch.zeros_like(vectors)
    try:
        (found,) = torch.autograd.grad(
            first, inputs, vectors, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation without a rule for batches, or without a second derivative, which then shows
        one = [vector_products([first], [inputs], [v], create_graph=False)[0] for v in vectors]
        return torch.stack(one)
    return torch.zeros_like(vectors) if found is None else found
