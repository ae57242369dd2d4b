"""Head FAM for any training loop: the term enters at the head, in the backward pass.

The head's output passes through an identity whose backward receives g = dL/dz with every scale of the loss inside
(accumulation, token weights, mixed precision), reads the item weights off it (docs/mathematics.md, closed form) and
adds the gradient of ``lambda * kappa`` to those of the logits, the features and the weight. Nothing is differentiated
twice, so it works in compiled models and in loops whose loss cannot be reached.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..calculus.torch_internals import forward_hooks
from ..layer.compilation import forget_compiled_code
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO, REPRESENTATION, unwrap
from ..layer.fused_head import UnfusedHead
from .batch import Seeds
from .estimators.injected_head import InjectFlatness
from .hard_labels import is_hard_label_gradient
from .row_signs import row_signs, unnumbered_row_signs
from .strength import is_strength

# In so many backward passes the gradient of the loss is looked at.
_LOOKS = 3


def attach(
    model: nn.Module,
    strength: float,
    layer: str | nn.Module = AUTO,
    *,
    row_probes: int = 0,
) -> AttachedFlatness:
    """Train the head's relative flatness from now on, in whatever loop the model is trained.

    For softmax cross-entropy with hard labels, under any reduction, item or class weights, ignored and shifted labels.
    Works in compiled models, too; what was compiled before is compiled again.

    What the loss is cannot be proven from its gradient. Label smoothing, soft labels, losses that are no softmax
    cross-entropy and preference losses are noticed in the first backward passes, with a warning; focal loss and others
    whose gradient looks the same are not. In compiled models nothing is looked at. `RelativeFlatness` proves it.

    Args:
        model: the model that is trained.
        strength: lambda, at least 0; can be changed later (``attached.strength = ...``).
        layer: the layer into the logits, see `RelativeFlatness`.
        row_probes: 0 for the exact kappa; for large vocabularies a number of row probes, such as 16, which costs next
            to nothing. In a compiled model they are drawn from torch's global random state.

    Returns:
        A handle with the last kappa and ``detach()``.

    Raises:
        ValueError: a negative strength, no such layer, a head with a single output, or one that has the term already; a
            number of probes below 0.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> attached = attach(model, strength=0.003)
        >>> loss = nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
        >>> loss.backward()  # your loop, as it is
        >>> attached.kappa() > 0
        True
        >>> attached.detach()
    """
    if isinstance(row_probes, bool) or not isinstance(row_probes, int) or row_probes < 0:
        raise ValueError(f"row_probes={row_probes!r}: give a whole number of at least 0 (0: exact).")
    return AttachedFlatness(model, strength, layer, row_probes)


class AttachedFlatness:
    """What `attach` returns; see there.

    Attributes:
        layer: the head.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        layer: str | nn.Module = AUTO,
        row_probes: int = 0,
    ) -> None:
        self._row_probes, self._calls = row_probes, 0
        if isinstance(layer, str) and layer == REPRESENTATION:
            raise ValueError(
                f'layer="{REPRESENTATION}" makes no logits, and attach is for softmax cross-entropy over the '
                "outputs of one layer: leave it out for the head, or use RelativeFlatness or FAMMixin."
            )
        self.layer = FeatureLayer(model, layer)
        if self.layer.out_features < 2:
            raise ValueError(
                f"layer '{self.layer.name}' has one output (regression, a reward, multiple choice), and attach is for "
                "softmax cross-entropy over the outputs of one layer: use RelativeFlatness or FAMMixin, which find out "
                "what the loss is."
            )
        if has_term(self.layer.module):
            raise ValueError(
                f"layer '{self.layer.name}' has a flatness term already: detach() the handle that attach returned "
                "before (FAMCallback does so by itself), or change its strength."
            )
        weight = self.layer.linear_map.weight
        self._strength = torch.zeros((), dtype=wide(weight.dtype), device=weight.device, requires_grad=True)
        self.strength = strength
        self._looks = _LOOKS
        self._unfused = UnfusedHead(unwrap(model))
        self._unfused.attach()
        forget_compiled_code()
        # Before all others: FSDP's hook takes the weight away.
        self._hook = self.layer.module.register_forward_hook(self._inject, prepend=True)
        self._acts = True

    def __reduce__(self) -> tuple[Any, ...]:
        """On a copy of the model, pickled or not, the hook does nothing."""
        return _doing_nothing, ()

    @property
    def strength(self) -> float:
        """Lambda."""
        return float(self._strength.detach())

    @strength.setter
    def strength(self, value: float) -> None:
        if not is_strength(value):
            raise ValueError(f"strength={value!r}: give a finite lambda of at least 0.")
        with torch.no_grad():
            self._strength.fill_(value)

    def kappa(self) -> float:
        """kappa since the last call, summed over backward passes, in the units of what ``backward`` was called on.

        With a gradient scaler, divide by its scale. Warns, and is 0, if no backward pass went through the term.
        """
        kappa = self.take_kappa()
        if kappa is None:
            warnings.warn(self.explain_inaction(), stacklevel=2)
            return 0.0
        return float(kappa)

    def take_kappa(self) -> Tensor | None:
        """`kappa` as a tensor, without waiting for the device; None if no backward pass went through the term."""
        kappa, self._strength.grad = self._strength.grad, None
        return kappa

    def explain_inaction(self) -> str:
        """Why no backward pass may have gone through the term."""
        return (
            f"No backward pass has gone through the flatness term at '{self.layer.name}' since the last look. Either "
            "there was none in training mode; or the loss does not depend on this layer (a loss that is fused with the "
            "head, Liger's for instance, goes past it); or the model was compiled while it was detached; or the head "
            "and all below it is frozen."
        )

    def detach(self) -> None:
        """Remove the hooks; the model is as it was."""
        self._hook.remove()
        self._unfused.detach()
        forget_compiled_code()

    def _inject(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not (self._acts and module.training and torch.is_grad_enabled()):
            return output
        linear_map = self.layer.linear_map
        logits, features = linear_map.rows(output), linear_map.feature_rows(args[0])
        m, device = features.shape[-1], output.device
        if torch.compiler.is_compiling():
            signs = unnumbered_row_signs(self._row_probes, m, device)
        else:
            self._calls += 1
            signs = row_signs(self._row_probes, m, device, Seeds((self._calls,)))
        weight = linear_map.weight
        injected: Tensor = InjectFlatness.apply(logits, features, weight, self._strength, signs, False, None)
        if not torch.compiler.is_compiling() and self._looks and injected.requires_grad:
            injected.register_hook(functools.partial(self._look, logits.detach()))
        return linear_map.outputs(injected)

    def _look(self, logits: Tensor, gradient: Tensor) -> None:
        """Warn, once, if the loss is not what `attach` is for."""
        if self._looks and bool(gradient.any()):
            self._looks -= 1
            if not is_hard_label_gradient(gradient, logits):
                self._looks = 0
                warnings.warn(
                    f"The gradient of the loss at '{self.layer.name}' is not that of softmax cross-entropy with hard "
                    "labels (label smoothing, soft labels, sigmoid, preferences, logits that are changed after this "
                    "layer ...), so kappa is weighted wrongly here. Where the loss can be reached, use "
                    "RelativeFlatness or FAMMixin, which find out what it is.",
                    stacklevel=2,
                )


def has_term(module: nn.Module) -> bool:
    """Whether `attach` has put a term on this very module."""
    owners = (getattr(hook, "__self__", None) for hook in forward_hooks(module))
    return any(isinstance(owner, AttachedFlatness) and owner._acts for owner in owners)


def _doing_nothing() -> AttachedFlatness:
    attached = AttachedFlatness.__new__(AttachedFlatness)
    attached._acts = False
    return attached
