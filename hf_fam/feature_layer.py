"""The feature layer: find it in a model, see its features and pre-activations, apply its weight.

Vocabulary (docs/mathematics.md): a layer computes ``z = W phi + b``; ``phi`` are its *features*, ``z`` its
*pre-activations*, everything above it is the *tail*.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import PREFIX, active_module, base_layer, is_adapted, is_module_copy
from .compilation import forget_compiled_code
from .flatness.linear_map import LinearMap
from .layer_kinds import has_weight_matrix, linear_map_of, needs_proof

HEAD = "head"
REPRESENTATION = "representation"
AUTO = "auto"

# What the modules that make logits are usually called, for models that define another layer after them.
_HEAD_NAMES = {
    "classifier",
    "class_labels_classifier",
    "classification_head",
    "score",
    "lm_head",
    "qa_outputs",
    "head",
}

# What second heads are called, whose loss helps the first one's.
_AUXILIARY = ("aux",)

# Where a layer says how many features it reads and how many pre-activations it makes.
_READS = ("in_features", "in_channels", "nx")
_MAKES = ("out_features", "out_channels", "nf")

# What attention is called in the blocks of a model.
_ATTENTION = ("attn", "attention")

Named = tuple[str, nn.Module]


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
        return self.versions == (self.features._version, self.pre_activations._version)


class FeatureLayer:
    """One layer of a model, whose features and pre-activations are captured during a forward pass.

    Linear layers, convolutions, and both with LoRA or quantised weights (`hf_fam.layer_kinds`).

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
        return not any(p is not None and p.requires_grad for module in others for p in module._parameters.values())

    @property
    def was_called(self) -> bool:
        """Whether the layer has been called in the forward pass that is being captured."""
        return bool(self._captures)

    @property
    def recomputing(self) -> bool:
        """Whether a checkpointed block is being computed a second time, inside a backward pass."""
        return torch._C._current_graph_task_id() != -1

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
        self._captures.append(Capture(features, rows, (features._version, rows._version)))
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


def unwrap(model: nn.Module) -> nn.Module:
    """The user's model inside DistributedDataParallel and torch.compile.

    DataParallel is refused, as its replicas cannot be seen.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model is wrapped in torch.nn.DataParallel, whose replicas cannot be captured: start one process per "
            "GPU instead (`accelerate launch` or `torchrun`), or use a single GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    inside = getattr(model, "_orig_mod", None)
    return unwrap(inside) if isinstance(inside, nn.Module) else model


def resolve_layer(model: nn.Module, layer: str | nn.Module) -> Named:
    """The dotted name and the module that ``layer`` stands for."""
    if isinstance(layer, nn.Module):
        names = [name for name, module in model.named_modules() if module is layer]
        if not names:
            raise ValueError(f"layer={type(layer).__name__}(...) is not a module of this {type(model).__name__}.")
        return _called(model, names[0]) or (names[0], layer)
    if not isinstance(layer, str):
        raise ValueError(f'layer={layer!r}: give "auto", "head", "representation", a dotted module name or a module.')
    if layer in (AUTO, HEAD):
        return find_head(model)
    if layer == REPRESENTATION:
        return find_representation(model)
    for name in (layer, PREFIX + layer, layer.removeprefix(PREFIX)):
        found = _called(model, name) if layer else None
        if found is not None:
            return found
    weighted = [name for name, _ in weighted_layers(model)]
    near = difflib.get_close_matches(layer, weighted, n=3, cutoff=0.3) or weighted[-3:]
    raise ValueError(
        f"layer={layer!r} is not a module of this {type(model).__name__}; did you mean {', '.join(map(repr, near))}? "
        f'("auto", "head" and "representation" work too; `hf-fam layers MODEL` lists all.)'
    )


def _called(model: nn.Module, name: str) -> Named | None:
    """What is called where the name leads: the trained copy of a module to save, a layer with its adapter."""
    module = model
    for part in name.split("."):
        if is_adapted(module) and part == "base_layer":
            continue
        if is_module_copy(module) and part != "modules_to_save":
            module = active_module(module)
            if part == "original_module":
                continue
        child = module._modules.get(part)
        if child is None:
            return None
        module = child
    module = active_module(module)
    return next((path, module) for path, candidate in model.named_modules() if candidate is module)


def weighted_layers(model: nn.Module) -> list[Named]:
    """All layers with a weight matrix that can be called, in the order in which the model defines them."""
    found: list[Named] = []
    seen: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        if has_weight_matrix(module):
            found.append((name, module))
        if is_adapted(module):  # a layer and its adapter are one
            return
        active = active_module(module)
        for part, child in module.named_modules() if active is not module else module.named_children():
            if active is module or child is active:
                visit(f"{name}.{part}" if name else part, child)

    visit("", model)
    return found


def find_head(model: nn.Module) -> Named:
    """The layer into the logits: output embeddings, else the last layer named like a head, else the last of all."""
    candidates = weighted_layers(model)
    get_output_embeddings = getattr(model, "get_output_embeddings", None)
    embeddings = None
    # Models without output embeddings answer None; some raise.
    with contextlib.suppress(NotImplementedError, AttributeError):
        embeddings = get_output_embeddings() if get_output_embeddings else None
    if embeddings is not None:
        output = active_module(embeddings)
        for name, module in candidates:
            if module is output:
                return name, module
    if not candidates:
        raise ValueError(f"{type(model).__name__} has no layer with a weight matrix: name the feature layer.")
    named = [(name, module) for name, module in candidates if _HEAD_NAMES.intersection(name.split("."))]
    return _narrowed(named or candidates, lambda name, module: not any(a in name for a in _AUXILIARY))[-1]


def find_representation(model: nn.Module) -> Named:
    """The last layer below the head: a pooler or dense layer of the head, else the last block's output projection.

    Modules tell the order of their definition, which is not always that of their calls. So a layer of the head's own
    part of the model goes before one of the body, one that makes as many features as the head reads before routers and
    gates, a decoder before what stands beside it, and a feed-forward layer before the attention of its own block.
    """
    head_name, head = find_head(model)
    layers = weighted_layers(model)
    position = [module for _, module in layers].index(head)
    below = layers[:position] or layers[position + 1 :]  # what is defined after a head is mostly a second one
    if not below:
        raise ValueError(
            f"{type(model).__name__} has no layer below its head '{head_name}': use layer=\"head\" or name a layer."
        )
    reads = _size(head, _READS)
    below = _narrowed(below, lambda name, module: _size(module, _MAKES) == reads)
    below = _narrowed(below, _in_the_decoder(model))
    below = _beside(head_name, below)
    block = _block(below[-1][0])
    below = [layer for layer in below if _is_inside(layer[0], block)]
    return _narrowed(below, lambda name, module: not any(a in name for a in _ATTENTION))[-1]


def _beside(head_name: str, layers: list[Named]) -> list[Named]:
    """The layers in the smallest part of the model that contains the head and any of them."""
    scope = head_name
    while scope:
        scope = scope.rpartition(".")[0]
        inside = [layer for layer in layers if _is_inside(layer[0], scope)]
        if inside:
            return inside
    return layers


def _narrowed(layers: list[Named], keep: Callable[[str, nn.Module], bool]) -> list[Named]:
    """The layers to keep, or all of them if that is none."""
    return [layer for layer in layers if keep(*layer)] or layers


def _size(layer: nn.Module, attributes: tuple[str, ...]) -> int | None:
    """The first of the attributes that a layer has."""
    return next((getattr(layer, name) for name in attributes if hasattr(layer, name)), None)


def _in_the_decoder(model: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Whether a layer is in the language model of the body, and not in an encoder or a projector beside it."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    inner = path.removeprefix(PREFIX)
    body = path.removesuffix(inner) + inner.split(".")[0]
    return lambda name, module: _is_inside(name, path) or not _is_inside(name, body)


def _is_inside(name: str, scope: str) -> bool:
    return not scope or f"{name}.".startswith(f"{scope}.")


def _block(name: str) -> str:
    """The innermost numbered module that contains a layer, or the layer itself."""
    parts = name.split(".")
    numbered = [k for k, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1]) if numbered else name
