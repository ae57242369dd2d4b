"""The possible feature layers of a model and the cost of their term, from its configuration alone.

The model is built on torch's meta device and called once with inputs that have shapes and no values. This gives call
order, shapes and FLOPs without weights, data or computation.

The cost of the term is relative to a plain training step, which is taken to be three forward passes. Each estimator
says its own (`Estimator.relative_cost`), from the FLOPs of the layer, of the tail above it and of the whole model.
Normalizations, activation functions and memory traffic count only in factors that were fitted on a CPU.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .._compat import model_from_config
from ..flatness.estimators import Operations
from ..flatness.relative_flatness import RelativeFlatness
from ..inputs.text import LONGEST_PATH, first_line, quote
from ..layer.finding import HEAD, REPRESENTATION, find_head, find_representation, weighted_layers
from ..layer.kinds import linear_map_of
from ..measure.model_config import ModelConfigError, load_config, model_class_name

# Why a layer cannot be chosen.
NOT_CALLED, UNSUPPORTED = "not called", "unsupported"


@dataclass(frozen=True)
class LayerRow:
    """One layer with a weight matrix.

    Attributes:
        name: dotted name, a value of ``fam_layer``.
        role: ``"head"``, ``"representation"``, or None.
        kind: its class.
        outputs: d, the number of pre-activations.
        features: m, the number of features.
        estimator: the meaning of ``fam_estimator="auto"`` for this layer; None if the layer cannot be chosen.
        rows: feature vectors of an item, 1 or the number of its tokens; None if unknown.
        times: number of calls in a forward pass; None if unknown.
        cost: expected extra time of a training step, as a fraction; None if unknown.
        needs_eager: whether fused attention, which has no second derivative, lies above the layer.
        why_not: reason why the layer cannot be chosen; None if it can.
    """

    name: str
    role: str | None
    kind: str
    outputs: int
    features: int
    estimator: str | None = None
    rows: int | None = None
    times: int | None = None
    cost: float | None = None
    needs_eager: bool = False
    why_not: str | None = None


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model, in the order in which they are called.

    Attributes:
        model: its class.
        untraced: reason why order and costs are unknown; None if they are known. Without a trace, layers are in the
            order of their definition.
        layers: one row for each layer.
        takes_texts: whether the model takes texts, so that costs depend on their length.
    """

    model: str
    untraced: str | None
    layers: Sequence[LayerRow]
    takes_texts: bool = True

    def last(self, count: int) -> LayerTable:
        """Return a table of the last layers."""
        return replace(self, layers=self.layers[-count:])

    def to_json(self) -> str:
        """Return the table as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def load_model(
    source: str, task: str | None = None, num_labels: int | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """Build a model from its configuration on the meta device, without weights.

    Args:
        source: a folder with a config.json, or a model on the Hub.
        task: one of ``TASKS``; by default the class that the configuration names is built.
        num_labels: number of classes; None: that of the configuration.
        trust_remote_code: run code that is saved with the model.

    Raises:
        ModelConfigError: the configuration cannot be found or read, or no model with a head can be built from it.
    """
    changes: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    config = load_config(source, {**changes, "trust_remote_code": trust_remote_code})
    name = model_class_name(source, config, task)
    model_class = getattr(transformers, name)
    try:
        with torch.device("meta"):
            model: nn.Module = (
                model_class.from_config(config, trust_remote_code=trust_remote_code)
                if name.startswith("Auto")
                else model_from_config(model_class, config)
            )
    except Exception as error:  # of any kind: configurations are written by others
        raise ModelConfigError(
            f"no {name} can be made from the config.json of {quote(source, LONGEST_PATH)}: {first_line(error)}"
        ) from error
    return model.eval()


def layer_table(model: nn.Module, length: int = 64) -> LayerTable:
    """Return the layers of a model that was built on the meta device.

    Args:
        model: see `load_model`.
        length: number of tokens in the text that is passed through it.

    Raises:
        ModelConfigError: the model has no layer with a weight matrix.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        >>> with torch.device("meta"):
        ...     model = BertForSequenceClassification(config)
        >>> table = layer_table(model)
        >>> [(row.name, row.estimator, row.rows) for row in table.layers[-2:]]
        [('bert.pooler.dense', 'gauss_newton', 1), ('classifier', 'closed_form', 1)]
    """
    layers = weighted_layers(model)
    if not layers:
        raise ModelConfigError(f"{type(model).__name__} has no layer with a weight matrix.")
    trace, untraced = None, None
    try:
        trace = trace_forward(model, dummy_inputs(model, length))
    except Exception as error:  # for example, shapes that depend on values, or operations without meta tensors
        untraced = textwrap.shorten(first_line(error), 120)
    if trace is not None:
        position = {name: k for k, name in enumerate(trace.calls)}
        layers.sort(key=lambda layer: position.get(layer[0], -1))
    roles = _roles(model)
    rows = [_row(model, name, module, roles.get(name), trace) for name, module in layers]
    return LayerTable(type(model).__name__, untraced, rows, getattr(model, "main_input_name", None) == "input_ids")


@dataclass(frozen=True)
class Call:
    """The first call of a layer in a forward pass.

    Attributes:
        rows: feature vectors of an item.
        times: number of calls of the layer.
        flops: FLOPs of the layer itself.
        tail: FLOPs of all later calls.
        below_attention: whether fused attention is called later.
    """

    rows: int
    times: int
    flops: int
    tail: int
    below_attention: bool


@dataclass(frozen=True)
class Trace:
    """A forward pass: the first call of every layer, in order, and its FLOPs in total."""

    calls: dict[str, Call]
    flops: int


def trace_forward(model: nn.Module, inputs: dict[str, Tensor]) -> Trace:
    """Call the model once and record order, shapes and FLOPs of its layers.

    Args:
        model: the model; on the meta device, the call takes no time.
        inputs: inputs of one item.
    """
    counter, attention = FlopCounterMode(display=False), _AttentionCalls()
    first_calls: dict[str, tuple[int, int, int, int]] = {}  # rows, FLOPs before and after, attention calls before
    started: dict[str, int] = {}
    times: Counter[str] = Counter()
    hooks = []
    for name, module in weighted_layers(model):

        def before(module: nn.Module, args: Any, name: str = name) -> None:
            started.setdefault(name, counter.get_total_flops())
            times[name] += 1

        def after(module: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
            rows = output.numel() // _shape(module)[0]
            first_calls.setdefault(name, (rows, started[name], counter.get_total_flops(), attention.count))

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad(), counter, attention:
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops()
    calls = {
        name: Call(rows, times[name], end - start, total - end, attention.count > calls_before)
        for name, (rows, start, end, calls_before) in first_calls.items()
    }
    return Trace(calls, total)


def dummy_inputs(model: Any, length: int) -> dict[str, Tensor]:
    """Return inputs of one item, with shapes and no values.

    They are a text, an image or a sound, depending on the model's main input.

    Args:
        model: a transformers model.
        length: number of tokens.

    Raises:
        NotImplementedError: the model takes another kind of input.
    """
    config = model.config
    text = config.get_text_config()
    # Models search a text for its padding token, but meta tensors have no values. Without one, they use the last token.
    config.pad_token_id = text.pad_token_id = None
    length = min(length, getattr(text, "max_position_embeddings", None) or length)
    ids = torch.ones(1, length, dtype=torch.long, device="meta")
    main = model.main_input_name
    if main == "input_ids":
        inputs = {main: ids.new_ones(1, 4, length) if "MultipleChoice" in type(model).__name__ else ids}
    elif main == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        inputs = {main: torch.zeros(1, getattr(config, "num_channels", 3), height, width, device="meta")}
    elif main == "input_values":
        inputs = {main: torch.zeros(1, 16_000, device="meta")}
    elif main == "input_features" and hasattr(config, "num_mel_bins"):
        inputs = {main: torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, device="meta")}
    else:
        raise NotImplementedError(f"the model takes {main}, of unknown shape")
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    return inputs


class _AttentionCalls(TorchFunctionMode):
    """Counts calls of torch's fused attention, which cannot be differentiated twice."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _row(model: nn.Module, name: str, module: nn.Module, role: str | None, trace: Trace | None) -> LayerRow:
    outputs, features = _shape(module)
    row = LayerRow(name, role, type(module).__name__, outputs, features)
    call = trace.calls.get(name) if trace else None
    if trace is not None and call is None:
        return replace(row, why_not=NOT_CALLED)
    if call is not None:
        row = replace(row, rows=call.rows, times=call.times)
    try:
        estimator = RelativeFlatness(model, module).method
    except TypeError:  # what FeatureLayer raises for a kind of layer that it does not support
        return replace(row, why_not=UNSUPPORTED)
    row = replace(row, estimator=estimator.name)
    if trace is None or call is None:
        return row
    cost = estimator.relative_cost(Operations(trace.flops, call.flops, call.tail, outputs, features))
    differentiated_twice = estimator.tail_derivatives > 1
    return replace(row, cost=cost, needs_eager=differentiated_twice and call.below_attention)


def _roles(model: nn.Module) -> dict[str, str]:
    roles = {find_head(model)[0]: HEAD}
    with contextlib.suppress(ValueError):  # the head is the only layer
        roles[find_representation(model)[0]] = REPRESENTATION
    return roles


def _shape(module: nn.Module) -> tuple[int, int]:
    """Return d and m, the shape of W as a matrix."""
    try:
        linear_map = linear_map_of(module)
    except TypeError:  # a transposed convolution
        layer: Any = module
        return layer.out_channels, layer.weight.numel() // layer.out_channels
    return linear_map.out_features, linear_map.in_features
