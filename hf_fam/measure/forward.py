"""Forward passes of a model that is only looked at: several layers watched at once, nothing left changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..layer.feature_layer import Capture, FeatureLayer
from ..layer.finding import unwrap
from ..layer.model_state import preserve_state
from .data import arguments_of

LossFunction = Callable[[nn.Module, Any], Tensor]


@contextlib.contextmanager
def looked_at(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode with frozen parameters; afterwards it, and every random state, is as it was."""
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


class Watch:
    """Runs batches through a model and shows the loss and what it captured of some layers, in the graph.

    The graph begins at the lowest of the layers, so that nothing below costs memory. Attention is computed by
    torch's mathematical kernel, the one that can be differentiated twice.

    Args:
        model: see `looked_at`.
        layers: the layers to watch.
        loss_fn: ``loss_fn(model, batch)``; by default ``model(**batch).loss``.
    """

    def __init__(self, model: nn.Module, layers: Sequence[FeatureLayer], loss_fn: LossFunction | None) -> None:
        self._model, self._layers = model, layers
        self._loss_fn = loss_fn or loss_of
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Watch:
        for layer in self._layers:
            self._hooks.append(layer.module.register_forward_hook(_begin_graph))
            layer.attach()
            self._hooks.append(layer.module.register_forward_hook(_copy))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            layer.detach()

    def __call__(self, batch: Any) -> tuple[Tensor, list[list[Capture]]]:
        """The loss, and the captures of every layer.

        Raises:
            ValueError: the model returned no loss, or one that is not a scalar; a label is not one of its classes; a
                layer was not called.
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
    """The loss of a batch, or one sentence about what is wrong with it.

    Raises:
        ValueError: a label is not one of the classes, or a token not one of the vocabulary; what the loss function
            returned is no scalar tensor.
    """
    try:
        loss = loss_fn(model, batch)
    except (IndexError, RuntimeError) as error:  # torch's two ways of saying it
        if "Target" in str(error) and "out of bounds" in str(error):
            classes = getattr(getattr(model, "config", None), "num_labels", None)
            known = f" (num_labels={classes})" if classes else ""
            raise ValueError(
                f"a label is outside the classes of the model{known}: {str(error).splitlines()[0]} Labels count from 0."
            ) from error
        if "index out of range in self" in str(error):  # of an embedding
            raise ValueError(_out_of_range(model, batch)) from error
        raise
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return the mean loss of the batch as a scalar tensor, not {given}.")
    return loss


def _out_of_range(model: nn.Module, batch: Any) -> str:
    start = "an embedding of the model was asked for a row that it does not have"
    config, tokens = getattr(model, "config", None), batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(tokens, Tensor):
        return f"{start}: tokens, positions and types have to be numbers that the model knows."
    known = [f"{n}={getattr(config, n)}" for n in ("vocab_size", "max_position_embeddings") if hasattr(config, n)]
    return (
        f"{start}: tokens are numbered from {int(tokens.min())} to {int(tokens.max())} in a batch of length "
        f"{tokens.shape[-1]}, and the model has {', '.join(known) or 'fewer'}. Prepare the data with its own tokenizer."
    )


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """``model(**batch).loss``, the convention of transformers.

    Raises:
        ValueError: the batch is not a dictionary, lacks what the model needs, or has no labels.
    """
    if not hasattr(batch, "keys"):
        raise ValueError(
            f"the batch is a {type(batch).__name__}, and only dictionaries can be passed to a model without being told "
            "how: give loss_fn=lambda model, batch: ..."
        )
    arguments = arguments_of(model, batch)
    given = ", ".join(map(repr, batch.keys())) or "nothing"
    try:
        output = model(**arguments)
    except (TypeError, ValueError) as error:
        missing = getattr(model, "main_input_name", None)
        if missing is not None and missing not in arguments:
            raise ValueError(
                f"the data has no column {missing!r}, which {type(model).__name__} needs; it has {given}."
            ) from error
        raise
    loss = output.get("loss") if hasattr(output, "get") else getattr(output, "loss", None)
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss for a batch with {given}: it needs labels (a column 'labels' or "
            "'label'), or a head that has a loss, or give loss_fn=lambda model, batch: ..."
        )
    return loss if loss.dim() == 0 else loss.mean()


def _begin_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


def _copy(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """What follows may work in place (``nn.ReLU(inplace=True)``), and the captured pre-activations must stay."""
    return output.clone()
