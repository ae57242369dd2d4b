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

from ..calculus.derivatives import vector_products, wide

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


def row_curvatures(first: Tensor, pre_activations: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Everything about uncoupled rows, by d Hessian-vector products of the tail.

    Args:
        first: dL/dz that can be differentiated again, shape ``(..., d)``.
        pre_activations: z, shape ``(..., d)``.
        gram: ``W W^T``, shape ``(d, d)``.

    Returns:
        ``h_is = d2L/dz_is^2``, shape ``(..., d)``, and ``<W W^T, d2L/dz_i^2>``, kappa of a row but for ``||phi_i||^2``,
        shape ``(...)``.

    Raises:
        SecondDerivativeError: an operation of the tail has no second derivative.
    """
    dtype = wide(pre_activations.dtype)
    spread = torch.zeros(pre_activations.shape[:-1], dtype=dtype, device=pre_activations.device)
    outputs = pre_activations.shape[-1]
    columns = []
    for start in range(0, outputs, _TOGETHER):
        chosen = range(start, min(start + _TOGETHER, outputs))
        vectors = pre_activations.new_zeros(len(chosen), *pre_activations.shape)
        for k, s in enumerate(chosen):
            vectors[k, ..., s] = 1
        (products,) = _many_products([first], [pre_activations], [vectors])
        columns += [products[k][..., s] for k, s in enumerate(chosen)]
        for k, s in enumerate(chosen):
            spread += products[k].to(dtype) @ gram[s].to(dtype)
    return torch.stack(columns, -1).to(dtype), spread


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
    outputs = calls[0].shape[-1]
    for begin in range(0, len(vectors), _TOGETHER):
        chosen = range(begin, min(begin + _TOGETHER, len(vectors)))
        own = [[phi[..., (start + k) * phi.shape[-2] // outputs, :] for phi in features] for k in chosen]
        moved = []
        for j, z in enumerate(calls):
            u = z.new_zeros(len(chosen), *z.shape)
            for i, k in enumerate(chosen):
                u[i, ..., start + k] = (own[i][j] @ vectors[k].to(own[i][j].dtype)).to(z.dtype)
            moved.append(u)
        products = _many_products(firsts, calls, moved)
        for i, k in enumerate(chosen):
            for phi, h in zip(own[i], products, strict=True):
                v = vectors.dtype
                result[k] += h[i][..., start + k].flatten().to(v) @ phi.flatten(0, -2).to(v)
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


def _many_products(firsts: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """H v for stacks of vectors; together where torch can, one by one where it cannot."""
    pairs = [(g, v) for g, v in zip(firsts, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is affine in the inputs
        return [torch.zeros_like(v) for v in vectors]
    outputs, weights = zip(*pairs, strict=True)
    try:
        found = torch.autograd.grad(
            outputs, inputs, weights, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError:  # an operation without a rule for batches, or without a second derivative, which then shows
        each = [
            vector_products(firsts, inputs, [v[k] for v in vectors], create_graph=False) for k in range(len(vectors[0]))
        ]
        return [torch.stack(products) for products in zip(*each, strict=True)]
    return [torch.zeros_like(v) if h is None else h for h, v in zip(found, vectors, strict=True)]
