"""Forward passes that capture several layers at once and leave the model as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..inputs.text import with_article
from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import unwrap
from ..layer.model_state import preserve_state
from .data import select_arguments

LossFunction = Callable[[nn.Module, Any], Tensor]


@contextlib.contextmanager
def frozen_for_evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the model in evaluation mode with frozen parameters.

    Afterwards, the model and every random state are as before.
    """
    model = unwrap(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    with preserve_state(model), torch.inference_mode(False):
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            yield model
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


class CapturingForward:
    """Runs batches through a model and returns the loss and the captures of some layers.

    Both are in the graph. The graph begins at the lowest of the layers, so that the layers below cost no memory.
    Attention is computed by torch's mathematical kernel, which can be differentiated twice.

    Args:
        model: see `frozen_for_evaluation`.
        layers: the layers to capture.
        loss_fn: ``loss_fn(model, batch)``; by default ``model(**batch).loss``.
    """

    def __init__(self, model: nn.Module, layers: Sequence[FeatureLayer], loss_fn: LossFunction | None) -> None:
        self._model, self._layers = model, layers
        self._loss_fn = loss_fn or loss_of
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> CapturingForward:
        for layer in self._layers:
            self._hooks.append(layer.module.register_forward_hook(_begin_graph))
            layer.attach()
            self._hooks.append(layer.module.register_forward_hook(_clone_output))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer.detach()

    def __call__(self, batch: Any) -> tuple[Tensor, list[list[Capture]]]:
        """Return the loss, and the captures of every layer.

        Raises:
            ValueError: the model returned no scalar loss, a label is not one of its classes, or a layer was not called.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            captures = [stack.enter_context(layer.capture()) for layer in self._layers]
            loss = evaluate(self._loss_fn, self._model, batch)
        for layer, captured in zip(self._layers, captures, strict=True):
            if not captured:
                raise ValueError(
                    f"layer '{layer.name}' was not called in the forward pass: `hf-fam layers MODEL` lists the layers "
                    "that are."
                )
        return loss, captures


def evaluate(loss_fn: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    """Return the loss of a batch, or raise a plain error about the batch.

    Raises:
        ValueError: a label is not one of the classes, a token is not in the vocabulary, or the loss function did not
            return a scalar tensor.
    """
    try:
        loss = loss_fn(model, batch)
    except (IndexError, RuntimeError) as error:  # torch raises either of them
        if "Target" in str(error) and "out of bounds" in str(error):
            classes = getattr(getattr(model, "config", None), "num_labels", None)
            num_labels = f" (num_labels={classes})" if classes else ""
            raise ValueError(
                f"a label is outside the classes of the model{num_labels}: {str(error).splitlines()[0]} Labels count "
                "from 0."
            ) from error
        if "index out of range in self" in str(error):  # of an embedding
            raise ValueError(_describe_out_of_range(model, batch)) from error
        raise
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        returned = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return the mean loss of the batch as a scalar tensor, not {returned}.")
    return loss


def _describe_out_of_range(model: nn.Module, batch: Any) -> str:
    start = "an index is too large for an embedding of the model"
    config, tokens = getattr(model, "config", None), batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(tokens, Tensor):
        return f"{start}: give token, position and type numbers that the model has."
    limits = [f"{n}={getattr(config, n)}" for n in ("vocab_size", "max_position_embeddings") if hasattr(config, n)]
    return (
        f"{start}: tokens are numbered from {int(tokens.min())} to {int(tokens.max())} in a batch of length "
        f"{tokens.shape[-1]}, and the model has {', '.join(limits) or 'fewer'}. Prepare the data with the model's own "
        "tokenizer."
    )


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """Return ``model(**batch).loss``, the convention of transformers.

    Raises:
        ValueError: the batch is not a dictionary, lacks what the model needs, or has no labels.
    """
    if not hasattr(batch, "keys"):
        raise ValueError(
            f"the batch is {with_article(type(batch).__name__)}, but only dictionaries can be passed to a model "
            "automatically: give loss_fn=lambda model, batch: ..."
        )
    arguments = select_arguments(model, batch)
    columns = ", ".join(map(repr, batch.keys())) or "nothing"
    try:
        output = model(**arguments)
    except (TypeError, ValueError) as error:
        missing = getattr(model, "main_input_name", None)
        if missing is not None and missing not in arguments:
            raise ValueError(
                f"the data has no column {missing!r}, which {type(model).__name__} needs; it has {columns}."
            ) from error
        raise
    loss = output.get("loss") if hasattr(output, "get") else getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss for a batch with {columns}. Add labels in a column 'labels' or "
            "'label', use a model with a head, or give loss_fn=lambda model, batch: ..."
        )
    return loss if loss.dim() == 0 else loss.mean()


def _begin_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


def _clone_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """Protect captured pre-activations from operations in place.

    An example is ``nn.ReLU(inplace=True)``.
    """
    return output.clone()
