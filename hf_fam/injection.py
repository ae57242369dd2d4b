"""Head FAM for any training loop: the term enters at the head, in the backward pass.

The head's output passes through an identity whose backward receives g = dL/dz with every scale of the loss inside
(accumulation, token weights, mixed precision), reads the item weights off it (docs/mathematics.md, closed form) and
adds the gradient of ``lambda * kappa`` to those of the logits, the features and the weight. Nothing is differentiated
twice, so it works in compiled models and in loops whose loss cannot be reached.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .feature_layer import AUTO, FeatureLayer
from .flatness.batch import Seeds
from .flatness.curvature import wide
from .flatness.head_injection import InjectFlatness
from .flatness.head_sampling import HeadSampling, check_token_fraction


def attach(
    model: nn.Module,
    strength: float,
    layer: str | nn.Module = AUTO,
    *,
    row_probes: int = 0,
    token_fraction: float = 1.0,
) -> AttachedFlatness:
    """Train the head's relative flatness from now on, in whatever loop the model is trained.

    For softmax cross-entropy with hard labels, under any reduction, item or class weights, ignored and shifted labels.
    What the loss is cannot be proven from its gradient, so unlike `RelativeFlatness` this takes your word for it: label
    smoothing, soft labels and focal loss would get another term. Attach before the model is compiled.

    Args:
        model: the model that is trained.
        strength: lambda, at least 0; can be changed later (``attached.strength = ...``).
        layer: the layer into the logits, see `RelativeFlatness`.
        row_probes: 0 for the exact kappa; for large vocabularies a number of row probes, such as 16, which costs next
            to nothing. In a compiled model they are drawn from torch's global random state.
        token_fraction: part of the rows with a label that is looked at, drawn anew every time.

    Returns:
        A handle with the last kappa and ``detach()``.

    Raises:
        ValueError: a negative strength, a number of probes below 0, a fraction out of range, or no such layer.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> attached = attach(model, strength=0.01)
        >>> loss = nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
        >>> loss.backward()  # your loop, as it is
        >>> attached.kappa() > 0
        True
        >>> attached.detach()
    """
    if isinstance(row_probes, bool) or not isinstance(row_probes, int) or row_probes < 0:
        raise ValueError(f"row_probes={row_probes!r}: give a whole number of at least 0 (0: exact).")
    check_token_fraction("token_fraction", token_fraction)
    sampling = HeadSampling(row_probes, float(token_fraction))
    return AttachedFlatness(FeatureLayer(model, layer), strength, sampling)


class AttachedFlatness:
    """What `attach` returns; see there.

    Attributes:
        layer: the head.
    """

    def __init__(self, layer: FeatureLayer, strength: float, sampling: HeadSampling | None = None) -> None:
        self.layer = layer
        self._sampling = sampling or HeadSampling()
        self._calls = 0
        weight = layer.weight
        self._strength = torch.zeros((), dtype=wide(weight.dtype), device=weight.device, requires_grad=True)
        self.strength = strength
        self._hook = layer.module.register_forward_hook(self._inject)

    @property
    def strength(self) -> float:
        """Lambda."""
        return float(self._strength.detach())

    @strength.setter
    def strength(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"strength={value!r}: give a finite lambda of at least 0.")
        with torch.no_grad():
            self._strength.fill_(value)

    def kappa(self) -> float:
        """kappa since the last call, summed over backward passes, in the units of what ``backward`` was called on."""
        kappa = 0.0 if self._strength.grad is None else float(self._strength.grad)
        self._strength.grad = None
        return kappa

    def detach(self) -> None:
        """Remove the hook; the model is as it was."""
        self._hook.remove()

    def _inject(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not (module.training and torch.is_grad_enabled()):
            return output
        linear_map = self.layer.linear_map
        logits, features = linear_map.rows(output), linear_map.feature_rows(args[0])
        rows, m, device = logits[..., 0].numel(), features.shape[-1], output.device
        if torch.compiler.is_compiling():
            signs, keys = self._sampling.signs(m, device, None), self._sampling.keys(rows, device, None)
        else:
            self._calls += 1
            signs, keys = self._sampling.draw(rows, m, device, Seeds((self._calls,), (self._calls,)))
        fraction, weight = self._sampling.token_fraction, linear_map.weight
        injected = InjectFlatness.apply(logits, features, weight, self._strength, signs, keys, fraction, False, None)
        return linear_map.outputs(injected)
