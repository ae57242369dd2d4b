"""What can be wrong with a captured forward pass, and how it is told to the user."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..calculus.autograd_graph import between, bypasses_logits, is_product, multiplied_by_parameters
from ..calculus.derivatives import SecondDerivativeError, second_derivatives
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.kinds import has_bias
from ..layer.linear_map import RowMap
from .batch import Batch
from .coupling import calls_are_nested
from .estimators import DENSE, GAUSS_NEWTON, HEAD_ESTIMATORS, HESSIAN, PERTURBATION, ROW_PROBES
from .heads import LARGE_VOCABULARY

# Why compiled code and second derivatives do not go together, and what does.
_COMPILED = (
    "which cannot be differentiated twice: compile only what lies below the layer (model.base_model.compile()), or use "
    "hf_fam.attach or hf_fam.FAMCallback, whose term for the head works in compiled models."
)


def refuse_to_center(layer: FeatureLayer, estimator: str) -> None:
    """Refuse to center the features of a layer, or under an estimator, that has no such form.

    Raises:
        ValueError: with the remedy.
    """
    if not isinstance(layer.linear_map, RowMap):
        raise ValueError(
            f"center=True (fam_center) is for linear layers, and '{layer.name}' is a convolution, whose padding would "
            "move with the mean: leave it at False."
        )
    if not can_center(layer, estimator):
        raise ValueError(
            f"center=True (fam_center) is not possible with estimator=\"{estimator}\" at '{layer.name}': leave it at "
            f'False, or use "{HESSIAN}" or "{PERTURBATION}".'
        )


def can_center(layer: FeatureLayer, estimator: str) -> bool:
    """Whether a layer has a form with centered features under an estimator."""
    large = estimator in HEAD_ESTIMATORS and layer.out_features > LARGE_VOCABULARY
    return isinstance(layer.linear_map, RowMap) and estimator not in (DENSE, ROW_PROBES) and not large


def centers_by_default(model: nn.Module, head: FeatureLayer, estimator: str) -> bool:
    """Whether ``center=None`` centers the features of a layer into the logits.

    The mean is taken where nothing but a linear layer with a bias is trained: its function does not change, and kappa
    does not count what all items share. On stored mean features 0.003 is then as harmless as without it (text 0.1
    points worse, FashionMNIST 0.4 better), and on the pooler of a frozen BERT it costs 1.3 points less
    (docs/results.md).
    """
    return has_bias(head.module) and head.is_trained_alone(model) and can_center(head, estimator)


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


def reaches_loss(batch: Batch) -> bool:
    """Whether the loss depends on the layer's output."""
    return _reached(batch.loss, batch.pre_activations)


def refuse_compiled_loss(batch: Batch) -> None:
    """See that nothing above the layer is compiled: some backends answer a second derivative with none, without a word.

    Args:
        batch: after its forward pass.

    Raises:
        SecondDerivativeError: something is.
    """
    if any(node.name().startswith("CompiledFunction") for node in between(batch.loss, batch.pre_activations)):
        raise SecondDerivativeError("a function was compiled by aot_autograd")


def check_reaches_loss(batch: Batch, layer: FeatureLayer, compiled: bool) -> None:
    """Refuse a layer whose output the loss does not depend on.

    Args:
        batch: after its forward pass.
        layer: the feature layer.
        compiled: whether the model runs as compiled code.

    Raises:
        ValueError: names the layer and the remedy.
        SecondDerivativeError: an operation above the layer cannot be differentiated in this way.
    """
    if reaches_loss(batch):
        return
    if compiled:
        raise ValueError(f"layer '{layer.name}' lies inside a compiled model, {_COMPILED}")
    raise ValueError(
        f"layer '{layer.name}' is called, but its output does not reach the loss: choose a layer that the loss "
        "depends on, the last one below it for instance (`hf-fam layers MODEL` lists them)."
    )


def check_logits(batch: Batch, layer: FeatureLayer, head: FeatureLayer) -> None:
    """Refuse what is no layer into the logits, on which the Gauss-Newton matrix is built.

    Args:
        batch: after its forward pass.
        layer: the feature layer.
        head: what was taken for the layer into the logits.

    Raises:
        ValueError: names the head and the remedy.
    """
    problem = None
    if not batch.logits:
        problem = "was not called in the forward pass"
    elif calls_are_nested(batch.logits, batch.logits):
        problem = "is called several times, one call feeding the next"
    elif not _reached(batch.loss, batch.logits):
        problem = "does not lead to the loss"
    elif any(map(is_product, between(batch.loss, batch.logits))):
        problem = "has further layers, or products, above it"
    if problem:
        raise ValueError(
            f"estimator=\"{GAUSS_NEWTON}\" takes '{head.name}' for the layer into the logits, but it "
            f'{problem}: use "{HESSIAN}", or call the layer into the logits "head" or "classifier".'
        )
    if bypasses_logits(batch.loss, batch.pre_activations, batch.logits):
        warnings.warn(
            f"Part of the loss depends on layer '{layer.name}' without passing through "
            f"'{head.name}' (the auxiliary loss of a router, a second head): estimator=\"{GAUSS_NEWTON}\" "
            f'leaves the curvature of that part out; "{HESSIAN}" has all of it.',
            stacklevel=5,
        )


def refuse_without_closed_form(
    error: Exception, batch: Batch, layer: FeatureLayer, head: FeatureLayer | None, estimator: str, taken_for_head: bool
) -> None:
    """Refuse a loss without a closed form, unless Hessian probes at the head can take its place.

    Args:
        error: why there is no closed form.
        batch: after its forward pass.
        layer: the feature layer.
        head: the layer into the logits, if there is one.
        estimator: its name.
        taken_for_head: nobody named the layer.

    Raises:
        ValueError: names the layer and the remedy.
    """
    if head is not layer:
        raise ValueError(
            f"layer '{layer.name}' has no closed form: {error}. estimator=\"{estimator}\" is for "
            f'the layer into the logits; use "{GAUSS_NEWTON}", "{HESSIAN}" or "{PERTURBATION}".'
        ) from error
    if taken_for_head and multiplied_by_parameters(batch.loss, _last_outputs(batch)):
        raise ValueError(
            f"no layer into the logits was found: '{layer.name}' was taken for it, but other "
            "parts of the model multiply its output (a contrastive loss does). Name the layer to flatten: "
            f'layer="{layer.name}" is possible, others are listed by `hf-fam layers MODEL`.'
        ) from error


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
        f'estimator="{PERTURBATION}".'
    )


def _reached(loss: Tensor, tensors: Sequence[Tensor]) -> bool:
    """Whether the loss depends on any of the tensors."""
    with second_derivatives():
        found = torch.autograd.grad(loss, list(tensors), retain_graph=True, allow_unused=True)
    return any(g is not None for g in found)


def _last_outputs(batch: Batch) -> Sequence[Tensor]:
    """Without the calls of the layer that feed later ones."""
    nested = calls_are_nested(batch.features, batch.pre_activations)
    return batch.pre_activations[-1:] if nested else batch.pre_activations
