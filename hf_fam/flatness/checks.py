"""Refusals of a captured forward pass that kappa cannot be taken of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..calculus.derivatives import SecondDerivativeError
from ..layer.feature_layer import Capture, FeatureLayer
from .batch import Batch

# Why compiled code and second derivatives do not go together, and what does.
_COMPILED = (
    "which cannot be differentiated twice: compile only what lies below the layer (model.base_model.compile()), or use "
    "hf_fam.attach or hf_fam.FAMCallback, whose term for the head works in compiled models."
)


def check_captures(
    loss: object,
    layer: FeatureLayer,
    head: FeatureLayer | None,
    captures: Sequence[Capture] | None,
    heads: Sequence[Capture],
) -> None:
    """Refuse a loss that is no scalar, and a forward pass that did not show what it should.

    Args:
        loss: what the user gave.
        layer: the feature layer.
        head: the layer into the logits, if there is one.
        captures: of the feature layer's calls; None if nothing was captured.
        heads: of the head's calls, where they are needed.

    Raises:
        ValueError: names the layer and the remedy.
        RuntimeError: the layer was called without gradients.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must be a scalar tensor, not {given}: take its mean (or sum) first.")
    if captures is None:
        raise ValueError("no forward pass was captured: run the model inside `with flatness.capture():`.")
    if not captures and layer.called_without_gradients:
        raise RuntimeError(
            f"layer '{layer.name}' was called without gradients while it was captured. In a Trainer that is "
            "reentrant gradient checkpointing, which hides the graph: set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}. In your own loop, leave torch.no_grad() '
            "out: kappa is a derivative of the loss. Losses that cache gradients (sentence-transformers' "
            "Cached... ones) hide the graph, too: use the plain one."
        )
    if not captures:
        raise ValueError(
            f"layer '{layer.name}' was not called in the forward pass: `hf-fam layers MODEL` lists the layers "
            "that are. (A fused loss, Liger's for instance, goes past the head.)"
        )
    if not all(c.pre_activations.requires_grad for c in captures):
        raise ValueError(
            f"nothing at or below layer '{layer.name}' is trainable, so its flatness cannot be trained: "
            "unfreeze the layer or something below it, or choose a layer further up."
        )
    if not all(c.is_unchanged for c in (*captures, *heads)):
        names = " or ".join(f"'{shown.name}'" for shown in {layer, head or layer})
        raise ValueError(
            f"what layer {names} gets or returns is changed in place later in the forward pass: write that "
            "operation without its underscore (x = x + y instead of x += y)."
        )


def refuse_compiled_loss(batch: Batch) -> None:
    """See that nothing above the layer is compiled: some backends answer a second derivative with none, without a word.

    Args:
        batch: after its forward pass.

    Raises:
        SecondDerivativeError: something is.
    """
    if any(node.name().startswith("CompiledFunction") for node in batch.graph.nodes):
        raise SecondDerivativeError("a function was compiled by aot_autograd")


def check_reaches_loss(batch: Batch, layer: FeatureLayer, compiled: bool) -> None:
    """Refuse a layer whose output the loss does not depend on.

    Args:
        batch: after its forward pass.
        layer: the feature layer.
        compiled: whether the model runs as compiled code.

    Raises:
        ValueError: names the layer and the remedy.
    """
    if batch.graph.is_reached:
        return
    if compiled:
        raise ValueError(f"layer '{layer.name}' lies inside a compiled model, {_COMPILED}")
    raise ValueError(
        f"layer '{layer.name}' is called, but its output does not reach the loss: choose a layer that the loss "
        "depends on, the last one below it for instance (`hf-fam layers MODEL` lists them)."
    )


def explain(error: SecondDerivativeError, layer: FeatureLayer, estimator: str) -> str:
    """What has no second derivative, and what to do about it."""
    start = f"estimator=\"{estimator}\" needs second derivatives of everything above layer '{layer.name}'"
    if "aot_autograd" in str(error):
        return f"{start}, and something there is compiled, {_COMPILED}"
    if "use_reentrant" in str(error):
        return (
            f"{start}, and reentrant gradient checkpointing has none: set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}.'
        )
    return (
        f"{start}, and an operation there has none ({str(error).splitlines()[0]}). If it is attention, call "
        'model.set_attn_implementation("eager"); else choose a layer above it or '
        f'estimator="perturbation".'
    )
