"""Find a layer of a model: the head, the representation, or a layer by its name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable

from torch import nn

from ..calculus.torch_internals import children, inside_compiled
from .adapters import PREFIX, active_module, is_adapted, is_module_copy
from .kinds import has_weight_matrix

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
    inside = inside_compiled(model)
    return model if inside is None else unwrap(inside)


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
        child = children(module).get(part)
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
