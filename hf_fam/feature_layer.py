"""The feature layer: find it in a model, see its features and pre-activations, apply its weight.

Vocabulary (docs/mathematics.md): a layer computes ``z = W phi + b``; ``phi`` are its *features*, ``z`` its
*pre-activations*, everything above it is the *tail*.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD = "head"
REPRESENTATION = "representation"
AUTO = "auto"

# Layer classes that multiply features by a weight, by class name where torch does not own the class.
_WEIGHTED_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_WEIGHTED_LAYER_NAMES = ("Conv1D",)

# What the modules that make logits are usually called, for models that define another layer after them.
_HEAD_NAMES = {"classifier", "classification_head", "score", "lm_head", "qa_outputs", "head"}


@dataclass(frozen=True)
class Capture:
    """What one forward pass showed of a layer, both still in the autograd graph.

    Attributes:
        features: phi, shape ``(..., m)``.
        pre_activations: z, shape ``(..., d)``.
    """

    features: Tensor
    pre_activations: Tensor


class FeatureLayer:
    """One ``nn.Linear`` of a model, whose features and pre-activations are captured during a forward pass.

    Args:
        model: the model that contains the layer; wrappers (DDP) are looked through.
        layer: ``"auto"`` and ``"head"``: the layer into the logits; ``"representation"``: the layer that makes
            what the head reads; else a dotted module name or the module itself.

    Attributes:
        name: dotted name inside the model.
        module: the layer.
        in_features: m, the number of features.
        out_features: d, the number of pre-activations.

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
        self.name, module = resolve_layer(unwrap(model), layer)
        if not isinstance(module, nn.Linear):
            raise TypeError(
                f"layer '{self.name}' is a {type(module).__name__}; only torch.nn.Linear can be the feature "
                f"layer so far. `hf-fam layers MODEL` lists what can be chosen."
            )
        self.module = module
        self.in_features: int = module.in_features
        self.out_features: int = module.out_features
        self.perturb: Callable[[Tensor, Tensor], Tensor] | None = None
        self._captures: list[Capture] | None = None
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    @property
    def weight(self) -> Tensor:
        """W, shape ``(d, m)``, as a differentiable tensor."""
        return self.module.weight

    def linear_map(self, vectors: Tensor) -> Tensor:
        """W times each vector: ``(..., m)`` to ``(..., d)``, without the bias."""
        return nn.functional.linear(vectors, self.weight.to(vectors.dtype))

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
            self._hook = self.module.register_forward_hook(self._on_forward)

    def detach(self) -> None:
        """Remove the hook, so that the model can be pickled and copied like any other."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Capture]]:
        """Record every call of the layer inside the ``with`` block in the list that it yields."""
        self.attach()
        captures: list[Capture] = []
        self._captures = captures
        try:
            yield captures
        finally:
            self._captures = None

    def _on_forward(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        capturing = self._captures is not None
        if capturing and not torch.is_grad_enabled():
            raise RuntimeError(
                f"layer '{self.name}' was called without gradients while it was captured. In a Trainer that is "
                "reentrant gradient checkpointing, which hides the graph: set "
                'gradient_checkpointing_kwargs={"use_reentrant": False}. In your own loop, leave torch.no_grad() '
                "out: kappa is a derivative of the loss."
            )
        # What is computed a second time is perturbed again, in the same way, and captured no more.
        if self.perturb is not None and (capturing or self.recomputing):
            output = self.perturb(args[0], output)
        if self._captures is not None:
            self._captures.append(Capture(args[0], output))
        return output


def unwrap(model: nn.Module) -> nn.Module:
    """The user's model inside DistributedDataParallel; DataParallel is refused, as its replicas cannot be seen."""
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model is wrapped in torch.nn.DataParallel, whose replicas cannot be captured: start one process per "
            "GPU instead (`accelerate launch` or `torchrun`), or use a single GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def resolve_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """The dotted name and the module that ``layer`` stands for."""
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer:
                return name, module
        raise ValueError(f"layer={type(layer).__name__}(...) is not a module of this {type(model).__name__}.")
    if layer in (AUTO, HEAD):
        return find_head(model)
    if layer == REPRESENTATION:
        return find_representation(model)
    modules = dict(model.named_modules())
    if layer and layer in modules:
        return layer, modules[layer]
    weighted = [name for name, _ in weighted_layers(model)]
    near = difflib.get_close_matches(layer, weighted, n=3, cutoff=0.3) or weighted[-3:]
    raise ValueError(
        f"layer={layer!r} is not a module of this {type(model).__name__}; did you mean {', '.join(map(repr, near))}? "
        f'("auto", "head" and "representation" work too; `hf-fam layers MODEL` lists all.)'
    )


def weighted_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All layers with a weight matrix, in the order in which the model defines them."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _WEIGHTED_LAYERS) or type(module).__name__ in _WEIGHTED_LAYER_NAMES
    ]


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """The layer into the logits: output embeddings, else the last layer named like a head, else the last of all."""
    candidates = weighted_layers(model)
    get_output_embeddings = getattr(model, "get_output_embeddings", None)
    # Models without output embeddings answer None; some raise.
    with contextlib.suppress(NotImplementedError, AttributeError):
        embeddings = get_output_embeddings() if get_output_embeddings else None
        for name, module in candidates:
            if module is embeddings:
                return name, module
    if not candidates:
        raise ValueError(f"{type(model).__name__} has no layer with a weight matrix: name the feature layer.")
    named = [(name, module) for name, module in candidates if _HEAD_NAMES.intersection(name.split("."))]
    return (named or candidates)[-1]


def find_representation(model: nn.Module) -> tuple[str, nn.Module]:
    """The last layer below the head: a pooler or dense layer of the head, else the last block's output projection."""
    head_name, head = find_head(model)
    candidates = [(name, module) for name, module in weighted_layers(model) if module is not head]
    if not candidates:
        raise ValueError(
            f"{type(model).__name__} has no layer below its head '{head_name}': use layer=\"head\" or name a layer."
        )
    return candidates[-1]
