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

from ..calculus.recheck_schedule import RecheckSchedule
from ..calculus.torch_internals import forward_hooks, is_in_backward_pass, own_parameters, version
from ..inputs.text import with_article
from .adapters import base_layer, has_active_dropout
from .compilation import forget_compiled_code
from .finding import AUTO, resolve_layer, unwrap
from .kinds import has_custom_forward, linear_map_of
from .linear_map import LinearMap
from .quantized import is_quantized
from .sharding import is_sharded, refuse_split_weight

# How many rows of the first batch are compared with W phi + b.
_CHECKED_ROWS = 64


@dataclass(frozen=True)
class Capture:
    """Features and pre-activations of one call of a layer, still in the autograd graph.

    Attributes:
        features: the layer's input, in its own layout: ``(..., m)``, or ``(N, channels, ...)`` for a convolution.
        pre_activations: z, channels last: ``(..., d)``.
        versions: torch's version counters of both, to notice changes in place.
    """

    features: Tensor
    pre_activations: Tensor
    versions: tuple[int, int]

    @property
    def is_unchanged(self) -> bool:
        """Return True if neither tensor was changed in place since the call."""
        return self.versions == (version(self.features), version(self.pre_activations))


class FeatureLayer:
    """One layer of a model, whose features and pre-activations are captured during a forward pass.

    Linear layers, convolutions, and both with LoRA or quantized weights (`hf_fam.layer.kinds`).

    Args:
        model: the model that contains the layer. It may be wrapped, for example by DDP.
        layer: ``"auto"`` and ``"head"``: the layer into the logits; ``"representation"``: the layer whose outputs the
            head reads; else a dotted module name or the module itself. In a PEFT model, names are those of the model
            inside. A name or module stands for the module that runs in its place: a layer with its adapter, or the
            trained copy in ``modules_to_save``.

    Attributes:
        name: dotted name inside the model.
        module: the layer.
        in_features: m, the number of features that a pre-activation depends on.
        out_features: d, the number of pre-activations.
        perturb: function of features, output and linear map that returns the perturbed output; None: no change.
        copies: whether the model gets a copy of z, so that operations in place (``ReLU(inplace=True)``, ``x += y``) do
            not overwrite it. True by default in models with such a module.
        called_without_gradients: whether the layer ran without gradients in the last `capture`.

    Raises:
        ValueError: there is no such layer (the message lists similar names), or no layer can be found automatically.
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
            self._linear_map: LinearMap | None = linear_map_of(self.module)
        except TypeError as error:
            raise TypeError(
                f"layer '{self.name}' {error} `hf-fam layers MODEL` lists the layers of a model."
            ) from error
        self.in_features: int = self.linear_map.in_features
        self.out_features: int = self.linear_map.out_features
        self.perturb: Callable[[Tensor, Tensor, LinearMap], Tensor] | None = None
        self.called_without_gradients = False
        self._recheck_schedule = RecheckSchedule()
        self.copies = any(getattr(m, "inplace", False) is True for m in model.modules())
        self._captures: list[Capture] | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, pickled or not.

        A copied model keeps its hooks. They do nothing until their layer captures, which belongs to the same copy.
        """
        return {**vars(self), "_linear_map": None, "_captures": None, "perturb": None}

    @property
    def linear_map(self) -> LinearMap:
        """Return W, and how it acts on features."""
        if self._linear_map is None:  # in a copy, because the map reads the weight of one module
            self._linear_map = linear_map_of(self.module)
        return self._linear_map

    @property
    def weight(self) -> Tensor:
        """Return W, shape ``(d, m)``, differentiable and with merged adapters."""
        return self.linear_map.weight

    def is_trained_alone(self, model: nn.Module) -> bool:
        """Return True if nothing else in a model is trained.

        A weight that is tied to another module counts as trained there too.
        """
        own_modules = {*self.module.modules()}
        other_modules = (module for module in unwrap(model).modules() if module not in own_modules)
        return not any(
            p is not None and p.requires_grad for module in other_modules for p in own_parameters(module).values()
        )

    @property
    def was_called(self) -> bool:
        """Return True if the layer has been called in the current capture."""
        return bool(self._captures)

    @property
    def is_recomputing(self) -> bool:
        """Return True while a checkpointed block is recomputed.

        The recomputation happens inside a backward pass.
        """
        return is_in_backward_pass()

    def attach(self) -> None:
        """Register the hook, once.

        It stays until `detach`, because compiled and checkpointed models need it.
        """
        if self._hook is None:
            forget_compiled_code()
            self._recheck_schedule = RecheckSchedule()
            # FSDP and DeepSpeed free the weight in a hook of their own, if they shard this module.
            self._hook = self.module.register_forward_hook(
                self._on_forward, with_kwargs=True, prepend=is_sharded(self.module)
            )

    def detach(self) -> None:
        """Remove the hook, so that the model can be pickled and copied."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            forget_compiled_code()

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Capture]]:
        """Yield a list that records every call inside the ``with`` block."""
        self.attach()
        captures: list[Capture] = []
        self._captures, self.called_without_gradients = captures, False
        try:
            yield captures
        finally:
            self._captures = None

    def _on_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        capturing = self._captures is not None
        if capturing and not torch.is_grad_enabled():  # a reference model, a metric, or reentrant checkpointing
            self.called_without_gradients = True
            return output
        features: Tensor = args[0] if args else next(iter(kwargs.values()))
        if capturing:
            self.check_linear(features, output)
        # A recomputed output is perturbed again in the same way, but not captured again.
        if self.perturb is not None and (capturing or self.is_recomputing):
            output = self.perturb(features, output, self.linear_map)
        if self._captures is None:
            return output
        rows = self.linear_map.rows(output)
        self._captures.append(Capture(features, rows, (version(features), version(rows))))
        # Return the captured view, so that the graph of the loss contains it.
        output = self.linear_map.outputs(rows)
        return output.clone() if self.copies else output

    def _may_differ(self) -> bool:
        """Return True if something else than torch's own forward pass may have made the output."""
        layer = base_layer(self.module)
        is_patched = any("forward" in vars(module) for module in (self.module, layer))
        first_hook = next(forward_hooks(self.module), None)
        is_hooked_before = getattr(first_hook, "__self__", None) is not self
        return has_custom_forward(layer) or is_patched or is_hooked_before

    @torch.no_grad()
    def check_linear(self, features: Tensor, output: Tensor) -> None:
        """Check on some rows that the layer returns ``W phi + b``, now and then.

        A class, an instance or an earlier hook may compute something else. W must be whole in this process.

        Args:
            features: input of the layer.
            output: its output.

        Raises:
            TypeError: it is something else.
            ValueError: W is split between processes.
        """
        refuse_split_weight(self.name, self.module)
        if torch.compiler.is_compiling() or not self._recheck_schedule.is_due():
            return
        layer = base_layer(self.module)
        if not self._may_differ() or is_quantized(layer) or has_active_dropout(self.module):
            return  # rounding and random numbers cannot be computed again
        weight, bias = self.weight, getattr(layer, "bias", None)
        if weight.device != features.device:  # moved away after the forward pass
            return
        with torch.autocast(features.device.type, enabled=False):
            phi = self.linear_map.feature_rows(features).flatten(0, -2)[:_CHECKED_ROWS]
            expected = self.linear_map.times(phi.to(weight.dtype))
            expected = expected if bias is None else expected + bias
        actual = self.linear_map.rows(output).flatten(0, -2)[:_CHECKED_ROWS]
        if not expected.isfinite().all():
            return
        if (actual - expected).abs().max() > 0.02 * expected.abs().max():
            raise TypeError(
                f"layer '{self.name}' is {with_article(type(layer).__name__)}, whose forward pass is not W phi + b "
                "with its weight and bias. Relative flatness is not defined for it: choose another layer. The layer's "
                "own forward method or a forward hook changes the output."
            )
