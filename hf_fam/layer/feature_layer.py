"""The feature layer: find it in a model, see its features and pre-activations, apply its weight.

Vocabulary (docs/mathematics.md): a layer computes ``z = W phi + b``; ``phi`` are its *features*, ``z`` its
*pre-activations*, everything above it is the *tail*.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..calculus.torch_internals import is_in_backward_pass, own_parameters, version
from .adapters import base_layer
from .compilation import forget_compiled_code
from .finding import AUTO, resolve_layer, unwrap
from .kinds import linear_map_of, needs_proof
from .linear_map import LinearMap


@dataclass(frozen=True)
class Capture:
    """What one forward pass showed of a layer, both still in the autograd graph.

    Attributes:
        features: what the layer got, in its own layout: ``(..., m)``, or ``(N, channels, ...)`` for a convolution.
        pre_activations: z, channels last: ``(..., d)``.
        versions: of both, to see whether they are changed in place afterwards.
    """

    features: Tensor
    pre_activations: Tensor
    versions: tuple[int, int]

    @property
    def untouched(self) -> bool:
        """Whether both are what the layer saw and made."""
        return self.versions == (version(self.features), version(self.pre_activations))


class FeatureLayer:
    """One layer of a model, whose features and pre-activations are captured during a forward pass.

    Linear layers, convolutions, and both with LoRA or quantized weights (`hf_fam.layer.kinds`).

    Args:
        model: the model that contains the layer; wrappers (DDP) are looked through.
        layer: ``"auto"`` and ``"head"``: the layer into the logits; ``"representation"``: the layer that makes
            what the head reads; else a dotted module name or the module itself. In a PEFT model names are those of the
            model inside, and a name or module stands for what is called in its place: a layer with its adapter, the
            trained copy of a module to save.

    Attributes:
        name: dotted name inside the model.
        module: the layer.
        linear_map: W, and how it acts on features.
        in_features: m, the number of features that a pre-activation depends on.
        out_features: d, the number of pre-activations.
        perturb: what is done to the output in a forward pass: called with features, output and linear map.
        copies: whether the model gets a copy of z, so that an operation in place (``ReLU(inplace=True)``, ``x += y``)
            does not overwrite it; by default where the model has such a module.
        called_without_gradients: whether a pass without gradients went by while the layer was captured last.

    Raises:
        ValueError: no such layer (near names are listed), or none can be found automatically.
        TypeError: the layer is of a kind that is not supported.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> FeatureLayer(model, "representation").name
        '0'
        >>> layer = FeatureLayer(model, "head")
        >>> with layer.capture() as captured:
        ...     output = model(torch.ones(5, 4))
        >>> [tuple(t.shape) for t in (captured[0].features, captured[0].pre_activations)]
        [(5, 3), (5, 2)]
        >>> layer.detach()
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module = AUTO) -> None:
        model = unwrap(model)
        self.name, self.module = resolve_layer(model, layer)
        try:
            self.linear_map: LinearMap = linear_map_of(self.module)
        except TypeError as error:
            raise TypeError(
                f"layer '{self.name}' {error} `hf-fam layers MODEL` lists the layers of a model."
            ) from error
        self.in_features: int = self.linear_map.in_features
        self.out_features: int = self.linear_map.out_features
        self.perturb: Callable[[Tensor, Tensor, LinearMap], Tensor] | None = None
        self.called_without_gradients = False
        self._unproven = needs_proof(self.module)
        self.copies = any(getattr(m, "inplace", False) is True for m in model.modules())
        self._captures: list[Capture] | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """On a copy of the model that is made during a training, pickled or not, the hook does nothing."""
        return _seeing_nothing, ()

    @property
    def weight(self) -> Tensor:
        """W, shape ``(d, m)``, as a differentiable tensor; adapters are merged."""
        return self.linear_map.weight

    def is_trained_alone(self, model: nn.Module) -> bool:
        """Whether nothing else in a model is trained; a tied weight is, in the other place."""
        own = {*self.module.modules()}
        others = (module for module in unwrap(model).modules() if module not in own)
        return not any(p is not None and p.requires_grad for module in others for p in own_parameters(module).values())

    @property
    def was_called(self) -> bool:
        """Whether the layer has been called in the forward pass that is being captured."""
        return bool(self._captures)

    @property
    def recomputing(self) -> bool:
        """Whether a checkpointed block is being computed a second time, inside a backward pass."""
        return is_in_backward_pass()

    def attach(self) -> None:
        """Register the hook, once; it stays until `detach`, because a compiled or checkpointed model needs it."""
        if self._hook is None:
            forget_compiled_code()
            self._hook = self.module.register_forward_hook(self._on_forward, with_kwargs=True)

    def detach(self) -> None:
        """Remove the hook, so that the model can be pickled and copied like any other."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            forget_compiled_code()

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Capture]]:
        """Record every call of the layer inside the ``with`` block in the list that it yields."""
        self.attach()
        captures: list[Capture] = []
        self._captures, self.called_without_gradients = captures, False
        try:
            yield captures
        finally:
            self._captures = None

    def _on_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        capturing = self._captures is not None
        if capturing and not torch.is_grad_enabled():  # a reference model's pass, a metric; or reentrant checkpointing
            self.called_without_gradients = True
            return output
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        if capturing and self._unproven:
            self._prove(features)
        # What is computed a second time is perturbed again, in the same way, and captured no more.
        if self.perturb is not None and (capturing or self.recomputing):
            output = self.perturb(features, output, self.linear_map)
        if self._captures is None:
            return output
        rows = self.linear_map.rows(output)
        self._captures.append(Capture(features, rows, (version(features), version(rows))))
        # The same view, so that z with its channels last lies between the layer and the loss.
        output = self.linear_map.outputs(rows)
        return output.clone() if self.copies else output

    @torch.no_grad()
    def _prove(self, features: Tensor) -> None:
        """A class with a forward pass of its own may do anything; see whether it is ``W phi + b``."""
        module: Any = base_layer(self.module)
        linear_map = linear_map_of(module)
        with torch.autocast(features.device.type, enabled=False):
            expected = linear_map.times(linear_map.feature_rows(features).to(module.weight.dtype))
            expected = expected if module.bias is None else expected + module.bias
        difference = (linear_map.rows(module.forward(features)) - expected).abs().max()
        if difference > 0.02 * expected.abs().max():
            raise TypeError(
                f"layer '{self.name}' is a {type(module).__name__}, whose forward pass is not W phi + b with its "
                "own weight and bias, so it has no relative flatness: choose another layer."
            )
        self._unproven = False


def _seeing_nothing() -> FeatureLayer:
    layer = FeatureLayer.__new__(FeatureLayer)
    layer._captures = layer.perturb = layer._hook = None
    return layer
