"""Find the hidden layer of a name: in an ``nn.Sequential``, in transformers' MLPs, or as the user gives it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..calculus.torch_internals import children, own_parameters
from ..inputs.text import quote
from ..layer.finding import resolve_layer, weighted_layers
from .hidden_layer import HiddenLayer, Naming
from .neuron_weights import BATCH_NORMS, CONVOLUTIONS, incoming_rows, inputs_of, is_convolution, is_rewritable

_FC_SIZES = ("ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "intermediate_size")
NAMINGS = (
    Naming(("intermediate.dense",), "output.dense", ("intermediate_size",)),  # BERT and its many relatives
    Naming(("mlp.c_fc",), "mlp.c_proj", ("n_inner",)),  # GPT-2
    Naming(("fc1",), "fc2", _FC_SIZES),  # ViT, CLIP, BART, OPT
    Naming(("lin1",), "lin2", ("hidden_dim",)),  # DistilBERT
    Naming(("dense_h_to_4h",), "dense_4h_to_h", ("ffn_hidden_size", "intermediate_size")),  # GPT-NeoX
    Naming(("ffn",), "ffn_output", ("intermediate_size",)),  # ALBERT
    Naming(("intermediate_dense",), "output_dense", ("intermediate_size",)),  # Wav2Vec2
    Naming(("wi",), "wo", ("d_ff",)),  # T5
    Naming(("wi_0", "wi_1"), "wo", ("d_ff",)),  # T5 v1.1, gated
    Naming(("gate_proj", "up_proj"), "down_proj", ("intermediate_size",)),  # Llama, Mistral, Qwen, Gemma, gated
)

# Modules of torch.nn.modules.activation that mix neurons or have a parameter for each.
_NOT_ELEMENTWISE = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention)
# Modules that act on every channel alone and alike.
_CHANNELWISE = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
# Modules of transformers that call their children in order.
_SEQUENTIAL_BLOCKS = ("ResNetConvLayer",)


def find_hidden_layer(
    model: nn.Module, layer: str | nn.Module, next_layer: str | nn.Module | None = None
) -> HiddenLayer:
    """Return the neurons that ``layer`` makes, with the layer that reads them.

    Args:
        model: the model, not wrapped.
        layer: dotted name, or module: an ``nn.Linear``, a convolution without groups or transformers' ``Conv1D``.
        next_layer: the layer that reads ``layer``'s output through an elementwise activation. Found automatically in an
            ``nn.Sequential`` and in the MLPs of transformers models; required elsewhere, where it is not verified.

    Raises:
        ValueError: there is no such layer, the layer that reads it is unknown, or the two do not fit together.
        TypeError: a layer is not a plain linear layer.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ValueError(
            f"model is wrapped in {type(model).__name__}, which keeps references to the parameters as they are: "
            "edit model.module first, then wrap it."
        )
    name, module = resolve_layer(model, layer)
    hidden = _by_naming(model, name) or _in_sequential(model, name, module)
    if next_layer is not None:
        next_name, outgoing = resolve_layer(model, next_layer)
        # A layer that was found by its name keeps its gate.
        if hidden is None or hidden.next_name != next_name:
            hidden = HiddenLayer((name,), (module,), next_name, outgoing)
    _check_called_once(model, name, module)
    if hidden is not None:
        _check_called_once(model, hidden.next_name, hidden.outgoing)
    if hidden is None:
        raise ValueError(
            f"layer '{name}': the layer that reads its output cannot be found in {_owner(model, name)}. If a linear "
            "layer reads it through only an elementwise activation, name that layer with next_layer=... Normalizations "
            "and gates are not supported."
        )
    return _check_layers(model, hidden)


def find_hidden_layers(
    model: nn.Module, layer: str | nn.Module | Sequence[str | nn.Module], next_layer: str | nn.Module | None = None
) -> list[HiddenLayer]:
    """Return the hidden layers of a list, or of a name with ``*``.

    Raises:
        ValueError: a pattern matches no layer, ``next_layer`` is given for several layers, or see `find_hidden_layer`.
    """
    if not isinstance(layer, (str, nn.Module, Sequence)):
        raise ValueError(f"layer={quote(layer)}: give a name, a pattern, a module, or a list of these.")
    if isinstance(layer, str) and any(sign in layer for sign in "*?["):
        matching = [name for name, _ in weighted_layers(model) if fnmatch.fnmatchcase(name, layer)]
        if not matching:
            raise ValueError(f"layer={quote(layer)} matches no linear layer of this {type(model).__name__}.")
        layer = matching
    if isinstance(layer, (str, nn.Module)):
        return [find_hidden_layer(model, layer, next_layer)]
    if next_layer is not None:
        raise ValueError("next_layer can be given for one layer only: call once for each layer.")
    layers = {hidden.next_name: hidden for hidden in (find_hidden_layer(model, one) for one in layer)}
    if not layers:
        raise ValueError(f"layer={layer!r} names no layer.")
    return list(layers.values())


def all_hidden_layers(model: nn.Module) -> Iterator[HiddenLayer]:
    """Yield every hidden layer that is recognized automatically, once."""
    seen = set()
    for name, module in weighted_layers(model):
        hidden = _by_naming(model, name) or _in_sequential(model, name, module)
        if hidden is not None and hidden.next_name not in seen:
            seen.add(hidden.next_name)
            yield hidden


def calls_in_order(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield name and module of every call of a nested ``nn.Sequential``, and whether it is elementwise."""
    for name, module in _flattened(model, ""):
        yield name, module, _is_elementwise(module)


def _by_naming(model: nn.Module, name: str) -> HiddenLayer | None:
    """Find a hidden layer by the names of transformers' own classes.

    Classes of other packages may use the same names for something else.
    """
    modules = dict(model.named_modules())
    for naming in NAMINGS:
        for role in naming.incoming:
            prefix = name.removesuffix(role)
            if prefix == name or (prefix and not prefix.endswith(".")):
                continue
            names = tuple(prefix + incoming for incoming in naming.incoming)
            next_name = prefix + naming.outgoing
            parent = modules[name.rpartition(".")[0]]
            from_transformers = type(parent).__module__.startswith("transformers.")
            if from_transformers and all(n in modules for n in (*names, next_name)):
                hidden = HiddenLayer(names, tuple(modules[n] for n in names), next_name, modules[next_name], naming)
                return None if _has_inner_norm(parent, hidden) else hidden
    return None


def _has_inner_norm(parent: nn.Module, hidden: HiddenLayer) -> bool:
    """Return True if the MLP normalizes its neurons.

    The normalization is recognized by its size.
    """
    outputs, width = incoming_rows(hidden.outgoing).shape[0], hidden.width
    weights = (getattr(child, "weight", None) for child in parent.children())
    return width != outputs and any(isinstance(w, Tensor) and w.shape == (width,) for w in weights)


def _in_sequential(model: nn.Module, name: str, module: nn.Module) -> HiddenLayer | None:
    """Find a hidden layer by the order of calls in an ``nn.Sequential``."""
    order = _call_order(model, name)
    if _count_calls(order, module) != 1:
        return None
    position = next(k for k, (_, candidate) in enumerate(order) if candidate is module)
    norms: list[nn.Module] = []
    is_elementwise = True
    for next_name, candidate in order[position + 1 :]:
        if is_rewritable(candidate):
            once = _count_calls(order, candidate) == 1
            found = HiddenLayer((name,), (module,), next_name, candidate, None, tuple(norms), is_elementwise)
            return found if once else None
        if isinstance(candidate, BATCH_NORMS) and _count_calls(order, candidate) == 1:
            norms.append(candidate)
            is_elementwise = False
        elif isinstance(module, CONVOLUTIONS) and isinstance(candidate, _CHANNELWISE):
            is_elementwise = False
        elif isinstance(module, CONVOLUTIONS) and isinstance(candidate, nn.Flatten):
            if (candidate.start_dim, candidate.end_dim) != (1, -1):
                return None
        elif not _is_elementwise(candidate):
            return None
    return None


def _call_order(model: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the modules that the outermost ``nn.Sequential`` calls, in order.

    The list is empty if there is no ``nn.Sequential`` around the layer.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    top, outer = None, name
    while outer:
        outer = outer.rpartition(".")[0]
        if not _calls_in_order(modules[outer]):
            break
        top = outer
    return [] if top is None else list(_flattened(modules[top], top))


def _count_calls(order: list[tuple[str, nn.Module]], module: nn.Module) -> int:
    return sum(candidate is module for _, candidate in order)


def _flattened(sequential: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    # named_children() lists a repeated module only once, although it is called several times.
    for key, child in children(sequential).items():
        name = f"{prefix}.{key}" if prefix else key
        if child is not None and _calls_in_order(child):
            yield from _flattened(child, name)
        elif child is not None:
            yield name, child


def _calls_in_order(module: nn.Module) -> bool:
    """Return True if the module calls its children one after the other and does nothing else."""
    return type(module) is nn.Sequential or type(module).__name__ in _SEQUENTIAL_BLOCKS


def _is_elementwise(module: nn.Module) -> bool:
    """Return True if the module acts on each neuron alone, and alike on all."""
    if isinstance(module, (nn.Identity, nn.Dropout)):
        return True
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    home = type(module).__module__
    return home == "transformers.activations" or (
        home == "torch.nn.modules.activation" and not isinstance(module, _NOT_ELEMENTWISE)
    )


def _check_layers(model: nn.Module, hidden: HiddenLayer) -> HiddenLayer:
    """Return the hidden layer, or refuse layers that cannot be rewritten."""
    layers = dict(zip((*hidden.names, hidden.next_name), (*hidden.incoming, hidden.outgoing), strict=True))
    for name, module in layers.items():
        _check_plain(model, name, module)
    outputs = {name: incoming_rows(module).shape[0] for name, module in zip(hidden.names, hidden.incoming, strict=True)}
    inputs = inputs_of(hidden.outgoing)
    flattens = is_convolution(hidden.incoming[0]) and isinstance(hidden.outgoing, nn.Linear)
    fits = inputs % hidden.width == 0 if flattens else inputs == hidden.width
    if len(set(outputs.values())) > 1 or not fits:
        sizes = ", ".join(f"'{name}' makes {size}" for name, size in outputs.items())
        raise ValueError(
            f"{sizes} values, but '{hidden.next_name}' reads {inputs}: give two layers with only an elementwise "
            "activation between them (a gate in one matrix is not supported)."
        )
    if any(module is hidden.outgoing for module in hidden.incoming):
        raise ValueError(f"layer and next_layer are the same layer, '{hidden.next_name}': give two layers.")
    return hidden


def _check_plain(model: nn.Module, name: str, module: Any) -> None:
    weight = getattr(module, "weight", None)
    if not is_rewritable(module) or not isinstance(weight, Tensor):
        raise TypeError(
            f"layer '{name}' is a {_qualified_class(module)}; neurons can be split in torch.nn.Linear, convolutions "
            "without groups and transformers' Conv1D only (merge adapters into their layers first)."
        )
    if parametrize.is_parametrized(module) or not isinstance(own_parameters(module).get("weight"), nn.Parameter):
        raise TypeError(f"the weight of layer '{name}' is computed by a parametrization: remove it first.")
    if type(weight) is not nn.Parameter or not weight.is_floating_point():
        raise TypeError(
            f"the weight of layer '{name}' is a {type(weight).__name__} of {weight.dtype}: quantized or sharded "
            "weights cannot be rewritten. Do it before quantizing or sharding."
        )
    for parameter in own_parameters(module).values():
        owners = [owner for owner in model.modules() if any(p is parameter for p in own_parameters(owner).values())]
        if parameter is not None and len(owners) > 1:
            raise ValueError(
                f"layer '{name}' shares its weight with another layer, so it cannot change alone: choose another layer."
            )


def _check_called_once(model: nn.Module, name: str, module: nn.Module) -> None:
    times = _count_calls(_call_order(model, name), module)
    if times > 1:
        raise ValueError(
            f"layer '{name}' is called {times} times by its nn.Sequential, for other neurons each time: its weights "
            "cannot change for one of them alone. Give each place a layer of its own (copy.deepcopy)."
        )


def _qualified_class(module: nn.Module) -> str:
    """Return the class with its package, as adapters have their own Linear."""
    return f"{type(module).__module__.partition('.')[0]}.{type(module).__name__}"


def _owner(model: nn.Module, name: str) -> str:
    return type(dict(model.named_modules())[name.rpartition(".")[0]]).__name__


def _set_weights(module: Any, rows: Tensor, bias: Tensor | None) -> None:
    """Set new parameters of the old type, device and requires_grad."""
    conv1d = type(module).__name__ == "Conv1D"
    old = module.weight
    new = rows.to(old.dtype)
    module.weight = nn.Parameter((new.T if conv1d else new).clone().contiguous(), old.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), module.bias.requires_grad)
    if conv1d:
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape
