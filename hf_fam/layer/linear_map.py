"""The linear part of a layer, ``z_t = W phi_t`` for every row t.

A row is an item, a token or a position. Pre-activations always have their channels last, so that no other module
handles convolutions. With G groups, W has one block of rows for each group. Then kappa is the sum over the groups, with
one random matrix A for each; see docs/estimators.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class LinearMap(ABC):
    """W and the geometry of its features, without the bias.

    Args:
        out_features: d, the number of pre-activations of a row.
        in_features: m, the number of features that a pre-activation depends on.
        stored: reads the weight in the layout in which the layer keeps it.
        matrix: rearranges that layout into W, shape ``(d, m)``.
        groups: G; rows of W are ordered by group.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int,
        stored: Callable[[], Tensor],
        matrix: Callable[[Tensor], Tensor] | None = None,
        groups: int = 1,
    ) -> None:
        self.out_features, self.in_features, self.groups = out_features, in_features, groups
        self.stored, self.matrix = stored, matrix or (lambda weight: weight)

    @property
    def weight(self) -> Tensor:
        """Return W, shape ``(d, m)``, differentiable by the parameters it consists of."""
        return self.matrix(self.stored())

    def times(self, vectors: Tensor) -> Tensor:
        """Return W times vectors: ``(..., G m)`` to ``(..., d)``."""
        w = self.weight.to(vectors.dtype)
        if self.groups == 1:
            return F.linear(vectors, w)
        w, v = w.unflatten(0, (self.groups, -1)), vectors.unflatten(-1, (self.groups, -1))
        return torch.einsum("gdm,...gm->...gd", w, v).flatten(-2)

    def times_blocks(self, vectors: Tensor, blocks: int) -> Tensor:
        """Return W times every block of the features alone.

        The features of a group are cut into consecutive blocks. The last ones may be shorter, or empty.

        Args:
            vectors: shape ``(..., G m)``.
            blocks: number of blocks of a group.

        Returns:
            Shape ``(..., G, blocks, d / G)``. The sum over the blocks is `times`.
        """
        padding = (0, -self.in_features % blocks)
        w = F.pad(self.weight.to(vectors.dtype).unflatten(0, (self.groups, -1)), padding).unflatten(-1, (blocks, -1))
        v = F.pad(vectors.unflatten(-1, (self.groups, -1)), padding).unflatten(-1, (blocks, -1))
        return torch.einsum("gdbm,...gbm->...gbd", w, v)

    def scaled(self, amounts: Tensor, outputs: Tensor) -> Tensor:
        """Multiply outputs ``(..., d)`` by one amount per group, ``(..., G)``."""
        return (outputs.unflatten(-1, (self.groups, -1)) * amounts.unsqueeze(-1)).flatten(-2)

    def rows(self, outputs: Tensor) -> Tensor:
        """Return the outputs with their channels last, a view of shape ``(..., d)``."""
        return outputs

    def outputs(self, rows: Tensor) -> Tensor:
        """Undo `rows`: return the outputs in the layer's own layout."""
        return rows

    def has_items(self, features: Tensor) -> bool:
        """Return True if the first dimension of features and outputs counts items."""
        return features.dim() > 1

    def vector_shape(self, features: Tensor, an_item: bool) -> torch.Size:
        """Return the shape of vectors in R^(G m): ``(G m,)`` or ``(items, G m)``.

        Args:
            features: the layer's input.
            an_item: one vector for each item, in place of one for all.
        """
        m = self.groups * self.in_features
        return torch.Size([features.shape[0], m] if an_item else [m])

    @abstractmethod
    def sign_shape(self, features: Tensor) -> torch.Size:
        """Return the shape of signs that give every row its own r.

        See `times_signs`.
        """

    @abstractmethod
    def times_signs(self, signs: Tensor) -> Tensor:
        """Return ``W r_t`` of every row, shape ``(..., d)``.

        Every r_t consists of independent signs.
        """

    @abstractmethod
    def norms(self, features: Tensor) -> Tensor:
        """Return ``||phi_t||`` of every row and group, shape ``(..., G)``."""

    @abstractmethod
    def projections(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Return ``a_k . phi_t`` of every row, group and vector, shape ``(..., G, K)``.

        Args:
            features: the layer's input.
            vectors: a, shape ``(K, G m)``, or ``(items, K, G m)`` for different vectors of every item.
        """

    @abstractmethod
    def feature_rows(self, features: Tensor) -> Tensor:
        """Return phi_t itself, shape ``(..., G m)``."""


class RowMap(LinearMap):
    """Map of ``torch.nn.Linear`` and similar layers: features are the last dimension.

    Examples:
        >>> import torch
        >>> W = torch.tensor([[1.0, 2.0]])
        >>> linear = RowMap(1, 2, lambda: W)
        >>> phi = torch.tensor([[3.0, 4.0]])
        >>> linear.times(phi), linear.norms(phi)
        (tensor([[11.]]), tensor([[5.]]))
    """

    def sign_shape(self, features: Tensor) -> torch.Size:
        """Return the shape of the features."""
        return features.shape

    def times_signs(self, signs: Tensor) -> Tensor:
        """Return ``W r_t``."""
        return self.times(signs)

    def norms(self, features: Tensor) -> Tensor:
        """Return ``||phi_t||``."""
        return torch.linalg.vector_norm(features, dim=-1, keepdim=True)

    def projections(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Return ``a_k . phi_t``."""
        if vectors.dim() == 2:
            return F.linear(features, vectors).unsqueeze(-2)
        return torch.einsum("i...m,ikm->i...k", features, vectors).unsqueeze(-2)

    def feature_rows(self, features: Tensor) -> Tensor:
        """Return the features as they are."""
        return features


class ConvolutionMap(LinearMap):
    """Map of convolutions: W is the kernel as a matrix, phi_t the patch at position t.

    Convolutions have n = 1 to 3 dimensions. Channels are dimension -(n + 1), so that inputs without a batch dimension
    work too. Norms and projections are convolutions themselves. Only the closed form unfolds patches.

    Args:
        out_channels: d.
        in_channels: of all groups together.
        kernel_size: one number a dimension.
        stored: reads the kernel, or W itself.
        stride: one number a dimension.
        padding: ``"same"``, ``"valid"`` or one number a dimension.
        dilation: one number a dimension.
        groups: G.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    Examples:
        >>> import torch
        >>> kernel = torch.ones(1, 1, 3)
        >>> sums = ConvolutionMap(1, 1, (3,), lambda: kernel, padding=(1,))
        >>> phi = torch.tensor([[[1.0, 2.0, 2.0]]])  # one item, one channel, three positions
        >>> sums.norms(phi).flatten()  # of the patches (0, 1, 2), (1, 2, 2) and (2, 2, 0)
        tensor([2.2361, 3.0000, 2.8284])
        >>> sums.projections(phi, torch.tensor([[1.0, 0.0, -1.0]])).flatten()
        tensor([-2., -1.,  2.])
    """

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        kernel_size: Sequence[int],
        stored: Callable[[], Tensor],
        *,
        stride: Sequence[int] | None = None,
        padding: str | Sequence[int] = "valid",
        dilation: Sequence[int] | None = None,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        in_features = in_channels // groups * math.prod(kernel_size)
        super().__init__(out_channels, in_features, stored, lambda kernel: kernel.flatten(1), groups)
        self.in_channels, self.kernel_size = in_channels, tuple(kernel_size)
        self.dimensions = len(self.kernel_size)
        self.stride = tuple(stride or [1] * self.dimensions)
        self.dilation = tuple(dilation or [1] * self.dimensions)
        self._pads = _pads(padding, self.kernel_size, self.dilation)
        self._padding_mode = "constant" if padding_mode == "zeros" else padding_mode
        self._channel = -(self.dimensions + 1)

    def rows(self, outputs: Tensor) -> Tensor:
        """Return the outputs with channels last."""
        return outputs.movedim(self._channel, -1)

    def outputs(self, rows: Tensor) -> Tensor:
        """Return the outputs with channels in the layer's own place."""
        return rows.movedim(-1, self._channel)

    def has_items(self, features: Tensor) -> bool:
        """Return True if there is a batch dimension."""
        return features.dim() > self.dimensions + 1

    def sign_shape(self, features: Tensor) -> torch.Size:
        """Return the shape of the padded features.

        Rows that the loss does not couple may share signs where patches overlap.
        """
        return self._pad(torch.empty(features.shape, device="meta")).shape

    def times_signs(self, signs: Tensor) -> Tensor:
        """Convolve the signs with the kernel."""
        kernel = self.weight.to(signs.dtype).unflatten(1, (-1, *self.kernel_size))
        return self.rows(self._convolve(signs, kernel, self.groups))

    def norms(self, features: Tensor) -> Tensor:
        """Return the root of the squares' convolution with ones.

        The gradient is 0 where a patch is 0.
        """
        squares = features.square().unflatten(self._channel, (self.groups, -1)).sum(self._channel)
        ones = squares.new_ones(self.groups, 1, *self.kernel_size)
        sums = self.rows(self._convolve(self._pad(squares), ones, self.groups))
        positive = sums > 0
        return torch.where(positive, sums, 1).sqrt() * positive

    def projections(self, features: Tensor, vectors: Tensor) -> Tensor:
        """Convolve the features with the kernels a.

        With different kernels for every item, items take the place of groups.
        """
        padded = self._pad(features)
        kernels = vectors.unflatten(-1, (self.groups, -1)).transpose(-3, -2)  # groups before vectors
        channels = kernels.flatten(0, -2).unflatten(-1, (-1, *self.kernel_size))
        if vectors.dim() == 2:
            projections = self.rows(self._convolve(padded, channels, self.groups))
        else:
            items = features.shape[0]
            of_items = self._convolve(padded.flatten(0, 1), channels, items * self.groups)
            projections = self.rows(of_items.unflatten(0, (items, -1)))
        return projections.unflatten(-1, (self.groups, -1))

    def feature_rows(self, features: Tensor) -> Tensor:
        """Return the unfolded patches."""
        x = self._pad(features)
        first = x.dim() - self.dimensions
        for k, (size, stride, dilation) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True)):
            x = x.unfold(first + k, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.movedim(first - 1, self._channel).flatten(self._channel)

    def _pad(self, x: Tensor) -> Tensor:
        return F.pad(x, self._pads, mode=self._padding_mode) if any(self._pads) else x

    def _convolve(self, padded: Tensor, kernel: Tensor, groups: int) -> Tensor:
        convolution: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[self.dimensions - 1]
        return convolution(padded, kernel, stride=self.stride, dilation=self.dilation, groups=groups)


def _pads(padding: str | Sequence[int], kernel_size: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return the padding for ``torch.nn.functional.pad``, last dimension first."""
    pads: list[int] = []
    for k in reversed(range(len(kernel_size))):
        if padding == "same":
            total = dilation[k] * (kernel_size[k] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0, 0] if isinstance(padding, str) else [padding[k]] * 2
    return pads
