"""Checks that kappa can be computed from a captured forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..calculus.derivatives import SecondDerivativeError
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import unwrap
from .batch import Batch

# Compiled code has no second derivatives. The message names the alternatives.
_COMPILED = (
    "which cannot be differentiated twice. Compile only what lies below the layer (model.base_model.compile()), or use "
    "hf_fam.attach or hf_fam.FAMCallback, whose term for the head works in compiled models."
)


def check_captures(
    loss: object,
    layer: FeatureLayer,
    head: FeatureLayer | None,
    captures: Sequence[Capture] | None,
    head_captures: Sequence[Capture],
) -> None:
    """Refuse a loss that is not a scalar, or a forward pass without usable captures.

    Args:
        loss: the loss that the user passed.
        layer: the feature layer.
        head: the layer that computes the logits, if it is known.
        captures: captures of the feature layer; None if no forward pass was captured.
        head_captures: captures of the head, if the estimator needs them.

    Raises:
        ValueError: names the layer and the remedy.
        RuntimeError: the layer was called without gradients.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must be a scalar tensor, not {received}: take its mean (or sum) first.")
    if captures is None:
        raise ValueError("no forward pass was captured: run the model inside `with flatness.capture():`.")
    if not captures and layer.called_without_gradients:
        raise RuntimeError(
            f"layer '{layer.name}' was called without gradients while it was captured. In a Trainer, reentrant "
            "gradient checkpointing does this: set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}. In your own loop, remove torch.no_grad(): '
            "kappa is a derivative of the loss. Losses that cache gradients (sentence-transformers' "
            "Cached... ones) hide the graph, too: use the plain one."
        )
    if not captures:
        raise ValueError(
            f"layer '{layer.name}' was not called in the forward pass. Choose one that `hf-fam layers MODEL` lists, "
            "and turn off fused losses such as Liger's, which do not call the head."
        )
    if not all(c.pre_activations.requires_grad for c in captures):
        raise ValueError(
            f"nothing at or below layer '{layer.name}' is trainable, so its flatness cannot be trained. "
            "Unfreeze the layer or a layer below it, or choose a layer closer to the loss."
        )
    if not all(c.is_unchanged for c in (*captures, *head_captures)):
        names = " or ".join(f"'{watched.name}'" for watched in {layer, head or layer})
        raise ValueError(
            f"what layer {names} gets or returns is changed in place later in the forward pass. Write that "
            "operation without its underscore, such as x = x + y instead of x += y."
        )


def may_be_skipped(model: nn.Module, layer: FeatureLayer) -> bool:
    """Return True if a model may leave out a layer in its first training step.

    A router may send no token to an expert, and layerdrop leaves out numbered blocks at random.

    Args:
        model: the model.
        layer: one of its layers.

    Examples:
        >>> model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)]), "head": nn.Linear(2, 2)})
        >>> [may_be_skipped(model, FeatureLayer(model, name)) for name in ("experts.0", "head")]
        [True, False]
    """
    parts = layer.name.split(".")
    if any("expert" in part for part in parts):
        return True
    config = getattr(unwrap(model), "config", None)
    settings = vars(config) if hasattr(config, "__dict__") else {}
    has_layerdrop = any(name.endswith("layerdrop") and value for name, value in settings.items())
    return has_layerdrop and any(part.isdigit() for part in parts)


def refuse_compiled_loss(batch: Batch) -> None:
    """Refuse compiled code above the layer.

    Some compiler backends return no second derivative without raising an error.

    Args:
        batch: the batch after its forward pass.

    Raises:
        SecondDerivativeError: an operation above the layer is compiled.
    """
    if any(node.name().startswith("CompiledFunction") for node in batch.graph.nodes):
        raise SecondDerivativeError("a function was compiled by aot_autograd")


def check_reaches_loss(batch: Batch, layer: FeatureLayer, is_compiled: bool) -> None:
    """Refuse a layer whose output the loss does not depend on.

    Args:
        batch: the batch after its forward pass.
        layer: the feature layer.
        is_compiled: whether the layer, or anything around it, runs as compiled code.

    Raises:
        ValueError: names the layer and the remedy.
    """
    if batch.graph.is_reached:
        return
    if is_compiled:
        raise ValueError(f"layer '{layer.name}' lies inside compiled code, {_COMPILED}")
    raise ValueError(
        f"layer '{layer.name}' is called, but its output does not reach the loss: choose a layer that the loss "
        "depends on (`hf-fam layers MODEL` lists the layers)."
    )


def explain_missing_derivative(error: SecondDerivativeError, layer: FeatureLayer, estimator: str) -> str:
    """Return the message that says what has no second derivative and what to do."""
    need = f"estimator=\"{estimator}\" needs second derivatives of everything above layer '{layer.name}'"
    if "aot_autograd" in str(error):
        return f"{need}, and something there is compiled, {_COMPILED}"
    if "use_reentrant" in str(error):
        return (
            f"{need}, and reentrant gradient checkpointing has none: set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}.'
        )
    return (
        f"{need}, and an operation there has none ({str(error).splitlines()[0]}). If it is attention, call "
        'model.set_attn_implementation("eager"). Otherwise choose a layer above it or '
        f'estimator="perturbation".'
    )
