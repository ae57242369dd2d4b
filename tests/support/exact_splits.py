"""B and D of a tanh network with squared error in 60 digits, from the definitions; nothing of hf_fam."""

from __future__ import annotations

from collections.abc import Sequence

import mpmath
from torch import Tensor, nn

DIGITS = 60


def exact_b_and_d(
    model: nn.Sequential, x: Tensor, y: Tensor, layer: int, neuron: int
) -> tuple[mpmath.matrix, mpmath.matrix]:
    """B and D of a neuron at the given float64 weights, for 0.5 ||f(x) - y||^2."""
    with mpmath.workdps(DIGITS):
        linear = [module for module in model if isinstance(module, nn.Linear)]
        weights = [_matrix(module.weight) for module in linear]
        biases = [_matrix(module.bias[:, None]) for module in linear]
        k = layer // 2
        size, outputs = weights[k].cols + 1, weights[k + 1].rows
        b, d = mpmath.zeros(size, size), mpmath.zeros(size, outputs)
        v = weights[k + 1][:, neuron]
        for item, target in zip(x, y, strict=True):
            features, pre = [_matrix(item[:, None])], []
            for w, bias in zip(weights, biases, strict=True):
                pre.append(w * features[-1] + bias)
                features.append(pre[-1].apply(mpmath.tanh))
            delta = pre[-1] - _matrix(target[:, None])
            for j in range(len(weights) - 1, k + 1, -1):
                delta = weights[j].T * delta
                delta = mpmath.matrix([d_i / mpmath.cosh(n) ** 2 for d_i, n in zip(delta, pre[j - 1], strict=True)])
            n = pre[k][neuron]
            first = 1 / mpmath.cosh(n) ** 2
            h = mpmath.matrix([*features[k], 1])
            b += (delta.T * v)[0] * (-2 * mpmath.tanh(n) * first) * h * h.T
            d += first * h * delta.T
        return b, d


def eigenvalues(matrix: mpmath.matrix) -> Sequence[mpmath.mpf]:
    with mpmath.workdps(DIGITS):
        return sorted(mpmath.eigsy(matrix, eigvals_only=True))


def distance(matrix: Tensor, exact: mpmath.matrix) -> float:
    """Frobenius norm of the difference, taken in 60 digits."""
    with mpmath.workdps(DIGITS):
        return float(mpmath.mnorm(_matrix(matrix) - exact, "f"))


def _matrix(tensor: Tensor) -> mpmath.matrix:
    return mpmath.matrix([[mpmath.mpf(value) for value in row] for row in tensor.detach().double().tolist()])
