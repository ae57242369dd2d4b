"""Find a layer of a model: the head, the representation, or a layer by its name."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable

from torch import nn

from ..calculus.torch_internals import children, inside_checkpointed, inside_compiled
from ..inputs.text import quote
from .adapters import PREFIX, active_module, is_adapted, is_module_to_save
from .kinds import has_weight_matrix

HEAD = "head"
REPRESENTATION = "representation"
AUTO = "auto"

# Usual names of the module that makes the logits. Some models define another layer after it.
_HEAD_NAMES = {
    "classifier",
    "class_labels_classifier",
    "classification_head",
    "score",
    "lm_head",
    "qa_outputs",
    "head",
}

# Parts of the names of auxiliary heads, whose loss is added to the main one.
_AUXILIARY_NAMES = ("aux",)

# Attributes of a layer that hold the numbers of its inputs and of its outputs.
_INPUT_SIZES = ("in_features", "in_channels", "nx")
_OUTPUT_SIZES = ("out_features", "out_channels", "nf")

# Parts of the names of attention modules.
_ATTENTION_NAMES = ("attn", "attention")

Named = tuple[str, nn.Module]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and torch.compile.

    Raises:
        ValueError: the model is in DataParallel, whose replicas hooks cannot reach.
    """
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model is wrapped in torch.nn.DataParallel, whose replicas cannot be captured: start one process per "
            "GPU (`accelerate launch` or `torchrun`), or use a single GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    inside = inside_compiled(model)
    return model if inside is None else unwrap(inside)


def resolve_layer(model: nn.Module, layer: str | nn.Module) -> Named:
    """Return the dotted name and the module that ``layer`` stands for.

    Raises:
        ValueError: the model has no such layer.
    """
    if isinstance(layer, nn.Module):
        names = [name for name, module in model.named_modules() if module is layer]
        if not names:
            raise ValueError(f"layer={type(layer).__name__}(...) is not a module of this {type(model).__name__}.")
        return _resolve_name(model, names[0]) or (names[0], layer)
    if not isinstance(layer, str):
        raise ValueError(
            f'layer={quote(layer)}: give "auto", "head", "representation", a dotted module name or a module.'
        )
    if layer in (AUTO, HEAD):
        return find_head(model)
    if layer == REPRESENTATION:
        return find_representation(model)
    for name in (layer, PREFIX + layer, layer.removeprefix(PREFIX)):
        match = _resolve_name(model, name) if layer else None
        if match is not None:
            return match
    layer_names = [name for name, _ in weighted_layers(model)]
    similar = difflib.get_close_matches(layer, layer_names, n=3, cutoff=0.3) or layer_names[-3:]
    raise ValueError(
        f"layer={quote(layer)} is not a module of this {type(model).__name__}; did you mean "
        f"{', '.join(map(repr, similar))}? "
        '"auto", "head" and "representation" work too, and `hf-fam layers MODEL` lists all.'
    )


def _resolve_name(model: nn.Module, name: str) -> Named | None:
    """Return the name and the module that runs under a dotted name.

    It is the trained copy of a module to save, or a layer with its adapter. None if the name leads nowhere.
    """
    module = model
    for part in name.split("."):
        if is_adapted(module) and part == "base_layer":
            continue
        if is_module_to_save(module) and part != "modules_to_save":
            module = active_module(module)
            if part == "original_module":
                continue
        child = children(inside_checkpointed(module)).get(part)
        if child is None:
            return None
        module = child
    module = active_module(module)
    return next((path, module) for path, candidate in model.named_modules() if candidate is module)


def weighted_layers(model: nn.Module) -> list[Named]:
    """Return all callable layers with a weight matrix.

    They are in the order in which the model defines them.
    """
    layers: list[Named] = []
    seen: set[nn.Module] = set()

    def visit(name: str, module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        if has_weight_matrix(module):
            layers.append((name, module))
        if is_adapted(module):  # the adapter's own layers do not count
            return
        active = active_module(module)
        for part, child in module.named_modules() if active is not module else module.named_children():
            if active is module or child is active:
                visit(f"{name}.{part}" if name else part, child)

    visit("", model)
    return layers


def find_head(model: nn.Module) -> Named:
    """Return name and module of the layer into the logits.

    It is the output embedding if the model has one. Otherwise it is the last layer that is named like a head, or
    else the last of all layers.
    """
    candidates = weighted_layers(model)
    get_output_embeddings = getattr(model, "get_output_embeddings", None)
    embeddings = None
    # Models without output embeddings return None or raise.
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
    return _preferred(named or candidates, lambda name, module: not any(a in name for a in _AUXILIARY_NAMES))[-1]


def find_representation(model: nn.Module) -> Named:
    """Return name and module of the last layer below the head.

    It is a pooler or a dense layer of the head, or else the output projection of the last block.

    Modules are listed in the order of their definition, which is not always the order of their calls. So these layers
    are preferred, in this order:

    - layers outside other heads, such as SigLIP's pooling head,
    - layers with as many outputs as the head has inputs, which excludes routers and gates,
    - layers of the decoder,
    - layers in the head's own part of the model,
    - feed-forward layers of a block before its attention.
    """
    head_name, head = find_head(model)
    layers = weighted_layers(model)
    position = [module for _, module in layers].index(head)
    # A layer that is defined after the head is usually a second head.
    candidates = layers[:position] or layers[position + 1 :]
    if not candidates:
        raise ValueError(
            f"{type(model).__name__} has no layer below its head '{head_name}': use layer=\"head\" or name a layer."
        )
    head_inputs = _first_attribute(head, _INPUT_SIZES)
    candidates = _preferred(candidates, lambda name, module: not _is_in_other_head(name, head_name))
    candidates = _preferred(candidates, lambda name, module: _first_attribute(module, _OUTPUT_SIZES) == head_inputs)
    candidates = _preferred(candidates, _is_in_decoder(model))
    candidates = _nearest_to_head(head_name, candidates)
    block = _block(candidates[-1][0])
    candidates = [layer for layer in candidates if _is_inside(layer[0], block)]
    return _preferred(candidates, lambda name, module: not any(a in name for a in _ATTENTION_NAMES))[-1]


def is_below_head(model: nn.Module, layer: nn.Module, head: nn.Module) -> bool:
    """Return True if a model's structure shows that a layer lies below the head.

    It lies in an earlier part of the same ``nn.Sequential``, or in the body of a transformers model, whose head lies
    outside. False is no proof: the model may have several heads.

    Args:
        model: the model.
        layer: one of its layers.
        head: its head.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> is_below_head(model, model[0], model[1]), is_below_head(model, model[1], model[1])
        (True, False)
    """
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            positions = [k for wanted in (layer, head) for k, part in enumerate(module) if wanted in part.modules()]
            if len(positions) == 2 and positions[0] < positions[1]:
                return True
        body = children(module).get(getattr(module, "base_model_prefix", ""))
        if body is not None and layer in body.modules() and head in module.modules() and head not in body.modules():
            return True
    return False


def _is_in_other_head(name: str, head_name: str) -> bool:
    """Return True if a layer lies in a head of a part of the model that does not contain the model's head."""
    parts = name.split(".")
    around = [".".join(parts[:k]) for k, part in enumerate(parts) if part in _HEAD_NAMES]
    return any(not _is_inside(head_name, scope) for scope in around)


def _nearest_to_head(head_name: str, layers: list[Named]) -> list[Named]:
    """Return the layers in the smallest part of the model around the head.

    The part is the smallest that contains the head and at least one of the layers.
    """
    scope = head_name
    while scope:
        scope = scope.rpartition(".")[0]
        inside = [layer for layer in layers if _is_inside(layer[0], scope)]
        if inside:
            return inside
    return layers


def _preferred(layers: list[Named], condition: Callable[[str, nn.Module], bool]) -> list[Named]:
    """Return the layers that satisfy a condition, or all if none does."""
    return [layer for layer in layers if condition(*layer)] or layers


def _first_attribute(layer: nn.Module, attributes: tuple[str, ...]) -> int | None:
    """Return the first of the attributes that a layer has."""
    return next((getattr(layer, name) for name in attributes if hasattr(layer, name)), None)


def _is_in_decoder(model: nn.Module) -> Callable[[str, nn.Module], bool]:
    """Return a test for layers in the language model of the body.

    Layers in an encoder or a projector beside it fail the test.
    """
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else None
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    inner = path.removeprefix(PREFIX)
    body = path.removesuffix(inner) + inner.split(".")[0]
    return lambda name, module: _is_inside(name, path) or not _is_inside(name, body)


def _is_inside(name: str, scope: str) -> bool:
    return not scope or f"{name}.".startswith(f"{scope}.")


def _block(name: str) -> str:
    """Return the name of the innermost numbered module around a layer.

    If there is none, it is the layer's own name.
    """
    parts = name.split(".")
    numbered = [k for k, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[-1] + 1]) if numbered else name
