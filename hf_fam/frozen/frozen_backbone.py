"""A model whose head is trained on features that the frozen backbone computed once."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.kinds import require_instance
from ..inputs.text import quote
from ..layer.finding import HEAD, resolve_layer

# The largest difference between logits from stored features and those of the whole model, relative to their size.
TOLERANCE = 1e-3


def freeze_backbone(model: nn.Module, new: Collection[str] = ()) -> list[str]:
    """Freeze what a classifier has from pretraining, and return the names of the parameters that are trained.

    These are the parameters outside ``model.base_model``, and those with new weights.

    Args:
        model: a model of transformers, or any model with a classification head.
        new: names of parameters that were not in the checkpoint.

    Raises:
        ValueError: nothing would be trained.
        TypeError: an argument is of a wrong class.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        >>> freeze_backbone(BertForSequenceClassification(BertConfig(vocab_size=9, **sizes)))
        ['classifier.weight', 'classifier.bias']
    """
    require_instance("model", model, nn.Module, "a model")
    if (
        isinstance(new, (str, Mapping))
        or not isinstance(new, Collection)
        or not all(isinstance(name, str) for name in new)
    ):
        raise TypeError(f"new={quote(new)}: give names of parameters.")
    backbone = getattr(model, "base_model", model)
    if backbone is model:
        head_name, _ = resolve_layer(model, HEAD)
        trained = {name for name, _ in model.named_parameters() if name.startswith(f"{head_name}.")}
    else:
        frozen = {id(p) for p in backbone.parameters()}
        trained = {name for name, p in model.named_parameters() if id(p) not in frozen}
    trained |= {*new}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError(f"freeze_backbone: {type(model).__name__} has no parameters outside its backbone.")
    return names


def keep_frozen_part_in_evaluation_mode(model: nn.Module) -> None:
    """Put all of a model in training mode but its frozen part, whose dropout and running statistics then rest."""
    model.train()
    for module in frozen_modules(model).values():
        module.eval()


def frozen_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the largest modules with parameters, all of which are frozen, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parameters = [*module.parameters()]
        is_frozen = parameters and not any(p.requires_grad for p in parameters)
        if is_frozen and not any(name == other or name.startswith(f"{other}.") for other in found):
            found[name] = module
    return found


class FrozenBackbone:
    """Computes the features of a frozen backbone, and lets a model train on them.

    The features of an item are the inputs of the first layer that is trained. `attach` gives the ``forward`` of a model
    another argument, ``features``. With it, all frozen modules are skipped: they return what they returned for one
    example, and the first trained layer reads the features instead. Without it, the model does what it always does.

    Args:
        model: a model after `freeze_backbone`.
        example: a batch with one item, as the collator makes it.

    Raises:
        ValueError: the frozen part cannot be skipped; the message says why.
        TypeError: an argument is of a wrong class.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any]) -> None:
        require_instance("model", model, nn.Module, "a model")
        require_instance("example", example, Mapping, "a batch with one item, a dictionary")
        self._inputs = {name: value for name, value in example.items() if name not in ("labels", "label")}
        self._frozen = [*frozen_modules(model)]
        self._outputs: dict[str, Any] = {}
        order: list[str] = []
        trained = [
            (name, module)
            for name, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        with contextlib.ExitStack() as stack:
            for name in self._frozen:
                module = model.get_submodule(name)
                handle = module.register_forward_hook(lambda m, args, out, name=name: self._keep_output(name, out))
                stack.callback(handle.remove)
            for name, module in trained:
                handle = module.register_forward_pre_hook(lambda m, a, name=name: order.append(name))
                stack.callback(handle.remove)
            _run(model, self._inputs)
        if not order:
            raise ValueError(f"freeze_backbone: no trained layer of {type(model).__name__} reads features.")
        self.first_layer = order[0]
        self.is_single_layer = len(trained) == 1

    def _keep_output(self, name: str, output: Any) -> None:
        self._outputs[name] = _map(output, lambda tensor: tensor.detach())

    def features(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Return the features of a batch, shape ``(items, features)`` or ``(items, tokens, features)``.

        Raises:
            ValueError: the first trained layer does not read one row, or one row per token, for each item.
        """
        read: list[Tensor] = []
        layer = model.get_submodule(self.first_layer)
        handle = layer.register_forward_pre_hook(lambda module, args: read.append(args[0].detach()))
        try:
            _run(model, batch)
        finally:
            handle.remove()
        size = len(next(value for value in batch.values() if isinstance(value, Tensor)))
        if len(read) != 1 or len(read[0]) != size or read[0].dim() not in (2, 3):
            raise ValueError(
                f"freeze_backbone: layer '{self.first_layer}' of {type(model).__name__} does not read one row for each "
                "item, so its features cannot be stored."
            )
        return read[0].float()

    def attach(self, model: nn.Module) -> None:
        """Give ``model.forward`` the argument ``features``.

        Args:
            model: the model, or a copy of it with another head.
        """
        detach(model)
        layer = model.get_submodule(self.first_layer)
        frozen = {name: model.get_submodule(name) for name in self._frozen}
        current: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda m, args: (current[-1], *args[1:]) if current else None)
        whole = model.forward

        def forward(*args: Any, features: Tensor | None = None, **kwargs: Any) -> Any:
            if features is None:
                return whole(*args, **kwargs)
            current.append(features)
            try:
                with _returning({m: _expanded(self._outputs[name], features) for name, m in frozen.items()}):
                    return whole(**_expanded(self._inputs, features), **kwargs)
            finally:
                current.pop()

        signature = inspect.signature(whole)
        extra = inspect.Parameter("features", inspect.Parameter.KEYWORD_ONLY, default=None)
        parameters = [*signature.parameters.values()]
        at = next((k for k, p in enumerate(parameters) if p.kind is p.VAR_KEYWORD), len(parameters))
        forward.__signature__ = signature.replace(parameters=[*parameters[:at], extra, *parameters[at:]])  # type: ignore[attr-defined]
        forward.remove_hook = handle.remove  # type: ignore[attr-defined]
        model.forward = forward

    def check(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        """Compare the logits from features with those of the whole model, on a batch of several items.

        Raises:
            ValueError: they differ, so that the head of this model cannot be trained on stored features.
        """
        features = self.features(model, batch)
        model.eval()
        with torch.no_grad():
            expected = _logits(model(**_without_labels(batch)))
            found = _logits(model(features=features))
        if found.shape != expected.shape or (found - expected).abs().max() > TOLERANCE * (1 + expected.abs().max()):
            raise ValueError(
                f"freeze_backbone: what {type(model).__name__} does after its backbone depends on more than the "
                f"features that enter '{self.first_layer}', so its head cannot be trained on stored features."
            )


def detach(model: nn.Module) -> None:
    """Give a model its own ``forward`` again."""
    forward = vars(model).get("forward")
    if forward is not None and hasattr(forward, "remove_hook"):
        forward.remove_hook()
        del model.forward


def _run(model: nn.Module, batch: Mapping[str, Any]) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(**_without_labels(batch))
    finally:
        model.train(was_training)


def _without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in ("labels", "label")}


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return logits.float()


@contextlib.contextmanager
def _returning(outputs: dict[nn.Module, Any]) -> Iterator[None]:
    """Let modules return values without being run."""
    own = {module: vars(module).get("forward") for module in outputs}

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    try:
        for module, value in outputs.items():
            module.forward = constant(value)
        yield
    finally:
        for module, forward in own.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested outputs with every tensor changed; what is neither tensor nor container is left out."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        mapped = {name: _map(entry, change) for name, entry in value.items()}
        return type(value)(**mapped) if hasattr(value, "to_tuple") else mapped
    if isinstance(value, (list, tuple)):
        return type(value)(_map(entry, change) for entry in value)
    return value if isinstance(value, (bool, int, float, str)) else None


def _expanded(value: Any, features: Tensor) -> Any:
    """Return tensors of one item, repeated for a batch of features."""
    size = len(features)

    def expand(tensor: Tensor) -> Tensor:
        tensor = tensor.to(features.device)
        return tensor.expand(size, *tensor.shape[1:]) if tensor.dim() and len(tensor) == 1 else tensor

    return _map(value, expand)
