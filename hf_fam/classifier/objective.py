"""Cross-entropy plus smoothed relative flatness of a linear classifier: value and gradient in closed form.

φ are the features of a sample, measured from an origin. Its logits are z = Wφ + b, and p = softmax(z). With
q = (1 − ε) p + ε / C and item weights c with sum one, the objective is

    Σ c ( −log p_y + λ ‖φ‖² Var_q(w) ),    Var_q(w) = Σ_k q_k ‖w_k‖² − ‖Σ_k q_k w_k‖².

Var_q(w) needs W only through the C × C matrix of inner products G = W Wᵀ. So no array is as large as the features.
With h = diag(G) − 2 G q, the derivative by the logits is

    c ( p − onehot(y) + λ ‖φ‖² (1 − ε) p ∘ (h − ⟨p, h⟩) ),

and at fixed q the one by W is 2 (diag(Σ u q) − Σ u q qᵀ) W with u = λ c ‖φ‖².
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .training_set import TrainingSet, chunks

Float64s = NDArray[np.float64]


class Objective:
    """Value and gradient for a solver, by parameters that do not depend on the scale of the features.

    The parameters are the C × m weights, times the scale of the features, then the C intercepts; float64, on the CPU.
    Arithmetic with features is done on their device, in their precision; sums over chunks are float64.

    Args:
        data: the training set.
        strength: λ.
        smoothing: ε, from 0 to 1.
    """

    def __init__(self, data: TrainingSet, strength: float, smoothing: float) -> None:
        self.data, self.strength, self.smoothing = data, strength, smoothing
        self.shape = (data.n_classes, data.features.shape[1])
        self.scale = data.scale
        self._origin = data.origin.to("cpu", torch.float64)

    def parameters_of(self, weight: Tensor, intercept: Tensor) -> Float64s:
        """Return the parameters of a weight and an intercept that act on the features as they are."""
        weight, intercept = weight.to("cpu", torch.float64), intercept.to("cpu", torch.float64)
        shifted = intercept + weight @ self._origin
        return np.concatenate([(weight * self.scale).numpy().ravel(), shifted.numpy()])

    def weight_and_intercept(self, parameters: Float64s) -> tuple[Tensor, Tensor]:
        """Return weight, (C, m), and intercept, (C,), that act on the features as they are.

        Adding a constant to all classes changes nothing; the sum over classes is zero.
        """
        weight, intercept = self._split(parameters)
        weight = weight - weight.mean(0)
        intercept = intercept - weight @ self._origin
        return weight, intercept - intercept.mean()

    def _split(self, parameters: Float64s) -> tuple[Tensor, Tensor]:
        vector = torch.from_numpy(np.array(parameters, dtype=np.float64))
        size = self.shape[0] * self.shape[1]
        return vector[:size].reshape(self.shape) / self.scale, vector[size:]

    def __call__(self, parameters: Float64s) -> tuple[float, Float64s]:
        """Return the value and the gradient by the parameters."""
        data, (weight, intercept) = self.data, self._split(parameters)
        weight = weight - weight.mean(0)  # changes nothing but rounding
        products = weight @ weight.T
        head, inner = weight.to(data.features), products.to(data.features)
        shift = (intercept - weight @ self._origin).to(data.features)[:, None]
        squares = inner.diagonal()[:, None]
        value = torch.zeros((), dtype=torch.float64)
        by_weight, by_intercept = torch.zeros_like(weight), torch.zeros_like(intercept)
        fixed, fixed_sum = torch.zeros_like(products), torch.zeros_like(intercept)
        for rows in chunks(data.features, self.shape[0]):
            # Arrays are (classes, samples): these products are the faster ones.
            features, items, labels = data.features[rows], data.weights[rows], data.classes[None, rows]
            log_p = (head @ features.T).add_(shift).log_softmax(0)
            value -= _exact_sum(items * log_p.gather(0, labels))
            p = log_p.exp_()
            by_logits = p.scatter_add(0, labels, p.new_full((1, 1), -1.0).expand(1, len(features)))
            by_logits *= items
            if self.strength:
                item_strengths = self.strength * items * data.squared_norms[rows]
                q = p * (1 - self.smoothing) + self.smoothing / self.shape[0]
                q_inner = inner @ q
                value += _exact_sum(item_strengths * (q * (squares - q_inner)).sum(0))
                slope = q_inner.mul_(-2).add_(squares)
                slope -= (p * slope).sum(0)
                by_logits += p.mul_(slope).mul_((1 - self.smoothing) * item_strengths)
                weighted = q * item_strengths
                fixed += _to_cpu(weighted @ q.T)
                fixed_sum += _to_cpu(weighted.sum(1))
            by_weight += _to_cpu(by_logits @ features)
            by_intercept += _to_cpu(by_logits.sum(1))
        by_weight -= torch.outer(by_intercept, self._origin)
        by_weight += 2 * (fixed_sum[:, None] * weight - fixed @ weight)
        gradient = torch.cat([by_weight.ravel() / self.scale, by_intercept])
        return float(value), gradient.numpy()


def _exact_sum(values: Tensor) -> Tensor:
    """Return a sum in float64, because a line search ends where rounding hides the progress."""
    return _to_cpu((values if values.device.type == "mps" else values.double()).sum())


def _to_cpu(part: Tensor) -> Tensor:
    return part.to("cpu", torch.float64)
