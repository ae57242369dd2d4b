"""Flatness-aware training of the head in any training loop, by a term in the backward pass.

The head's output passes through an identity. Its backward receives g = dL/dz, which contains every scale of the loss
(accumulation, token weights, mixed precision). It computes the item weights from g (docs/closed-form.md).
Then it adds the gradient of ``lambda * kappa`` to the gradients of the logits, the features and the weight. This needs
no second derivative, so it works in compiled models and in training loops that hide their loss.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.derivatives import wide
from ..calculus.recheck_schedule import RecheckSchedule
from ..calculus.torch_internals import forward_hooks
from ..inputs.numbers import MOST_PROBES, require_whole
from ..inputs.text import quote
from ..layer.compilation import forget_compiled_code
from ..layer.feature_layer import FeatureLayer
from ..layer.finding import AUTO, REPRESENTATION, unwrap
from ..layer.fused_head import UnfusedHead
from ..layer.sharding import refuse_older_fsdp
from .batch import Seeds
from .hard_labels import is_hard_label_gradient
from .injected_term import InjectFlatness
from .row_signs import random_row_signs, row_signs
from .smoothing import check_smoothing
from .strength import is_strength


def attach(
    model: nn.Module,
    strength: float,
    layer: str | nn.Module = AUTO,
    *,
    row_probes: int = 0,
    smoothing: float = 0.0,
) -> AttachedFlatness:
    """Add the head's relative flatness to the training, in any training loop.

    The loss must be softmax cross-entropy with hard labels. Any reduction, item weights, class weights, ignored labels
    and shifted labels are fine. Compiled models work, too; code that was compiled before is compiled again.

    Backward passes 0, 1, 2, 4, ..., 64 and every hundredth check the gradient of the loss. Label smoothing, soft
    labels, preference losses and other losses give a warning. The check cannot detect focal loss and losses with a
    similar gradient, and compiled models skip it. `RelativeFlatness` verifies the loss exactly.

    Args:
        model: the model to train.
        strength: lambda, at least 0. You can change it later (``attached.strength = ...``).
        layer: the layer that computes the logits, see `RelativeFlatness`.
        row_probes: 0 for the exact kappa. For large vocabularies use row probes, for example 16: they cost little. In a
            compiled model their signs come from torch's global random state.
        smoothing: eps of the smoothed kappa, see `RelativeFlatness`.

    Returns:
        A handle with the last kappa and ``detach()``.

    Raises:
        ValueError: the strength, the number of probes or the smoothing is out of range. The layer does not exist. The
            head has a single output, or it has a flatness term already.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> attached = attach(model, strength=0.003)
        >>> loss = nn.functional.cross_entropy(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
        >>> loss.backward()  # your training loop does not change
        >>> attached.kappa() > 0
        True
        >>> attached.detach()
    """
    row_probes = require_whole("row_probes", row_probes, 0, MOST_PROBES, more=" (0: exact)")
    check_smoothing("smoothing", smoothing)
    return AttachedFlatness(model, strength, layer, row_probes, smoothing)


class AttachedFlatness:
    """Handle of an attached flatness term, as `attach` returns it.

    Attributes:
        layer: the head.

    Raises:
        ValueError: `attach` lists the reasons.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        layer: str | nn.Module = AUTO,
        row_probes: int = 0,
        smoothing: float = 0.0,
    ) -> None:
        self._row_probes, self._smoothing, self._call_number = row_probes, smoothing, 0
        if isinstance(layer, str) and layer == REPRESENTATION:
            raise ValueError(
                f'layer="{REPRESENTATION}" makes no logits, but attach is for softmax cross-entropy over the outputs '
                "of one layer. Remove the argument to use the head, or use RelativeFlatness or FAMMixin."
            )
        refuse_older_fsdp(unwrap(model))
        self.layer = FeatureLayer(model, layer)
        if self.layer.out_features < 2:
            raise ValueError(
                f"layer '{self.layer.name}' has one output (regression, a reward, multiple choice), but attach is for "
                "softmax cross-entropy over the outputs of one layer. Use RelativeFlatness or FAMMixin, which support "
                "other losses."
            )
        if has_flatness_term(self.layer.module):
            raise ValueError(
                f"layer '{self.layer.name}' has a flatness term already: detach() the handle that attach returned, or "
                "change its strength."
            )
        weight = self.layer.linear_map.weight
        self._strength = torch.zeros((), dtype=wide(weight.dtype), device=weight.device, requires_grad=True)
        self.strength = strength
        self._recheck_schedule, self._has_warned = RecheckSchedule(), False
        self._unfused = UnfusedHead(unwrap(model))
        self._unfused.attach()
        forget_compiled_code()
        # This hook must run before FSDP's, which removes the weight.
        self._hook = self.layer.module.register_forward_hook(self._inject, prepend=True)
        self._is_active = True

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not, which is inactive: a copied model trains without the term."""
        return {**vars(self), "_is_active": False}

    def __repr__(self) -> str:
        return f"AttachedFlatness(layer={self.layer.name!r}, strength={self.strength:g})"

    @property
    def strength(self) -> float:
        """Return lambda."""
        return self._strength_value

    @strength.setter
    def strength(self, value: float) -> None:
        if not is_strength(value):
            raise ValueError(f"strength={quote(value)}: give a finite lambda of at least 0.")
        self._strength_value = float(value)  # a copy, because reading a tensor waits for the device
        with torch.no_grad():
            self._strength.fill_(value)

    def kappa(self) -> float:
        """Return kappa since the last call, summed over backward passes.

        The units are those of the loss that ``backward`` was called on. With a gradient scaler, divide by its scale.
        The result is 0, with a warning, if no backward pass used the term.
        """
        kappa = self.take_kappa()
        if kappa is None:
            warnings.warn(self.explain_inaction(), stacklevel=2)
            return 0.0
        return float(kappa)

    def take_kappa(self) -> Tensor | None:
        """Return `kappa` as a tensor, without waiting for the device.

        None if no backward pass used the term.
        """
        kappa, self._strength.grad = self._strength.grad, None
        return kappa

    def explain_inaction(self) -> str:
        """Return the message about a term that no backward pass used."""
        return (
            f"No backward pass has gone through the flatness term at '{self.layer.name}' since the last call. Possible "
            "causes: no backward pass ran in training mode, or the model was compiled while the term was detached. The "
            "head and all layers below it are frozen. Or the loss does not depend on this layer: a loss that is fused "
            "with the head, such as Liger's, does not call it."
        )

    def detach(self) -> None:
        """Remove the term and its hooks from the model."""
        self._hook.remove()
        self._unfused.detach()
        forget_compiled_code()

    def _inject(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not (self._is_active and module.training and torch.is_grad_enabled()):
            return output
        self.layer.check_linear(args[0], output)
        linear_map = self.layer.linear_map
        logits, features = linear_map.rows(output), linear_map.feature_rows(args[0])
        m, device = features.shape[-1], output.device
        if torch.compiler.is_compiling():
            signs = random_row_signs(self._row_probes, m, device)
        else:
            self._call_number += 1
            signs = row_signs(self._row_probes, m, device, Seeds((self._call_number,)))
        weight = linear_map.weight
        injected: Tensor = InjectFlatness.apply(
            logits, features, weight, self._strength, signs, False, None, self._smoothing
        )
        if not torch.compiler.is_compiling() and injected.requires_grad and self._recheck_schedule.is_due():
            injected.register_hook(functools.partial(self._check_gradient, logits.detach()))
        return linear_map.outputs(injected)

    def _check_gradient(self, logits: Tensor, gradient: Tensor) -> None:
        """Warn once if the loss is not softmax cross-entropy with hard labels."""
        if not self._has_warned and bool(gradient.any()) and not is_hard_label_gradient(gradient, logits):
            self._has_warned = True
            warnings.warn(
                f"The gradient of the loss at '{self.layer.name}' is not that of softmax cross-entropy with hard "
                "labels, so kappa has wrong item weights here. Causes are label smoothing, soft labels, sigmoids, "
                "preferences, and logits that change after this layer. Use RelativeFlatness or FAMMixin, which support "
                "other losses.",
                stacklevel=2,
            )


def has_flatness_term(module: nn.Module) -> bool:
    """Return True if `attach` has put a term on this module."""
    owners = (getattr(hook, "__self__", None) for hook in forward_hooks(module))
    return any(isinstance(attached, AttachedFlatness) and attached._is_active for attached in owners)
