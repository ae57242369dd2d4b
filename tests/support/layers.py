"""Small networks around a feature layer of every kind, with an independent formula for what the layer does.

The layer's output is replaced by that formula, applied to a weight that is a tensor of the graph: the reference is the
Hessian of that tensor, and shares nothing with the linear maps that are tested.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from support.tails import Attention, Pool, Residual


@dataclass
class LayerCase:
    """A model, its feature layer, a batch, and what the layer computes.

    Attributes:
        plain: the layer's output from its input and W, shape ``(d, m)``.
        weight: W from the layer's parameters, in the graph.
        groups: of a grouped convolution.
    """

    model: nn.Module
    name: str
    inputs: Tensor
    loss: Callable[[Tensor], Tensor]
    coupling: str
    plain: Callable[[Tensor, Tensor], Tensor]
    weight: Callable[[], Tensor]
    groups: int = 1
    substitute: Tensor | None = None

    @property
    def layer(self) -> nn.Module:
        return self.model.get_submodule(self.name)

    def use_substitute(self) -> None:
        """From now on the layer applies `substitute`; call before hf_fam attaches its hook."""

        def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert self.substitute is not None
            ours = self.plain(args[0], self.substitute)
            torch.testing.assert_close(ours, output, rtol=1e-8, atol=1e-10)
            return ours

        self.layer.register_forward_hook(replace)

    def run(self) -> tuple[Tensor, Tensor]:
        """Logits and loss of a forward pass with a fresh substitute."""
        self.substitute = self.weight()
        if self.substitute.is_leaf:
            self.substitute = self.substitute.view_as(self.substitute)
            if not self.substitute.requires_grad:
                self.substitute.requires_grad_()
        logits = self.model(self.inputs)
        return logits, self.loss(logits)


def hessian_reference(loss: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """kappa from the definition, one row of the Hessian at a time, for any tensor of the graph."""
    d, m = w.shape
    (first,) = torch.autograd.grad(loss, w, create_graph=True)
    rows = [torch.autograd.grad(g, w, create_graph=True)[0] for g in first.flatten()]
    return _kappa(torch.stack(rows).view(d, m, d, m), w, groups)


def gauss_newton_reference(loss: Tensor, logits: Tensor, w: Tensor, groups: int = 1) -> Tensor:
    """The same with ``J^T (d2 loss / d logits2) J``, J the Jacobian of the logits by W."""
    jacobian = torch.stack([torch.autograd.grad(y, w, create_graph=True)[0] for y in logits.flatten()])
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    outer = torch.stack([torch.autograd.grad(g, logits, create_graph=True)[0].flatten() for g in first.flatten()])
    return _kappa(torch.einsum("ksi,kl,ltj->sitj", jacobian, outer, jacobian), w, groups)


def _kappa(hessian: Tensor, w: Tensor, groups: int) -> Tensor:
    total = w.new_zeros(())
    size = len(w) // groups
    for g in range(groups):
        rows = slice(g * size, (g + 1) * size)
        traces = torch.einsum("siti->st", hessian[rows, :, rows])
        total = total + ((w[rows] @ w[rows].T) * traces).sum()
    return total


class SimulatedQuantized(nn.Linear):
    """A linear layer that stores W in 8 bits."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.scale = self.weight.detach().abs().max() / 127
        codes = (self.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def dequantize(self) -> Tensor:
        return self.weight.to(self.bias.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize(), self.bias)


class Flat(nn.Module):
    """Channels and positions of an item, or of the only item, in one row."""

    def __init__(self, batched: bool = True) -> None:
        super().__init__()
        self.batched = batched

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if self.batched else x.flatten().unsqueeze(0)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def random_convolution(dimensions: int, draw: random.Random, groups: int | None = None) -> nn.Module:
    """A convolution of random stride, padding, dilation, groups and padding mode, with few weights."""
    same = draw.choice([True, False])
    each = [tuple(draw.choice([0, 1]) for _ in range(dimensions)) for _ in range(3)]
    return CONVOLUTIONS[dimensions](
        2,
        2 * draw.choice([1, 2]),
        kernel_size=tuple(draw.choice([1, 2, 3] if k == 0 else [1, 2]) for k in range(dimensions)),
        stride=1 if same else tuple(1 + s for s in each[0]),
        padding="same" if same else draw.choice([0, 1, each[1]]),
        dilation=tuple(1 + s for s in each[2]),
        groups=groups or draw.choice([1, 2]),
        bias=draw.choice([True, False]),
        padding_mode=draw.choice(["zeros", "reflect", "replicate", "circular"]),
    ).double()


def with_weight(layer: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """A convolution as a function of its input and weight; a copy of it, whose forward pass nobody replaces."""
    original = copy.deepcopy(layer)

    def convolved(x: Tensor, w: Tensor) -> Tensor:
        given = {"weight": w.view_as(layer.weight), "bias": layer.bias}
        return functional_call(original, {name: value for name, value in given.items() if value is not None}, (x,))

    return convolved


def size_for(dimensions: int) -> tuple[int, ...]:
    """Positions of an input."""
    return {1: (6,), 2: (5, 4), 3: (5, 3, 3)}[dimensions]


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Of logits with their classes last."""
    return lambda logits: F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def convolution_case(
    dimensions: int, tail: str, seed: int, batched: bool = True, groups: int | None = None
) -> LayerCase:
    """A random convolution, below a tail that couples the positions of an item, or the items too."""
    torch.manual_seed(seed)
    layer: Any = random_convolution(dimensions, random.Random(seed), groups)
    inputs = torch.randn(*([3] if batched else []), 2, *size_for(dimensions), dtype=torch.float64)
    outputs = layer(inputs)
    norms = [_NORMS[dimensions](len(layer.weight))] if tail == "batchnorm" else []
    width = outputs[0].numel() if batched else outputs.numel()
    model = nn.Sequential(
        CONVOLUTIONS[dimensions](2, 2, 1), nn.Tanh(), layer, *norms, nn.Tanh(), Flat(batched), nn.Linear(width, 3)
    ).double()
    several_positions = width > len(layer.weight)
    coupling = ("items" if batched else "batch") if several_positions else "rows"
    return LayerCase(
        model,
        "2",
        inputs,
        cross_entropy(torch.randint(0, 3, (3 if batched else 1,))),
        "batch" if tail == "batchnorm" else coupling,
        with_weight(layer),
        lambda: layer.weight.flatten(1),
        layer.groups,
    )


KINDS = ["conv1d", "quantized", "lora", "lora conv1d", "dora", "lora quantized", "lora convolution", "two adapters"]


def kind_case(kind: str, seed: int, head: bool = False) -> LayerCase:
    """A feature layer of another kind than `torch.nn.Linear`, hidden below tanh and attention, or as the head."""
    torch.manual_seed(seed)
    layer: Any = nn.Linear(4, 3)
    if "conv1d" in kind:
        layer = Conv1D(3, 4)
        nn.init.normal_(layer.weight)
    elif "quantized" in kind:
        layer = SimulatedQuantized(4, 3)
    elif "convolution" in kind:
        layer = nn.Conv2d(2, 3, (2, 1), stride=(1, 2), padding=1)
    convolution, convolved = "convolution" in kind, with_weight(layer)
    if convolution:
        trunk: list[nn.Module] = [nn.Conv2d(2, 2, 1), nn.Tanh()]
        tail = [] if head else [nn.Tanh(), Flat(), nn.Linear(3 * 5 * 3, 3)]
        inputs = torch.randn(3, 2, 4, 3, dtype=torch.float64)
    else:
        trunk = [nn.Linear(3, 4), nn.Tanh()]
        tail = [] if head else [Residual(Attention(3)), nn.Tanh(), Pool(), nn.Linear(3, 3)]
        inputs = torch.randn(3, 2, 3, dtype=torch.float64)
    model = nn.Sequential(*trunk, layer, *tail).double()
    if "lora" in kind or kind in ("dora", "two adapters"):
        for name in ("default", "second")[: 2 if kind == "two adapters" else 1]:
            config = LoraConfig(r=2, lora_alpha=3, target_modules=["2"], use_dora=kind == "dora")
            model = inject_adapter_in_model(config, model, adapter_name=name).double()
        adapted: Any = model[2]
        adapted.set_adapter(["default", "second"] if kind == "two adapters" else "default")
        for factor in adapted.lora_B.values():
            nn.init.normal_(factor.weight)
        if kind == "dora":
            nn.init.uniform_(adapted.lora_magnitude_vector["default"].weight, 1, 2)
    stored = (lambda: layer.dequantize()) if "quantized" in kind else (lambda: layer.weight)
    shape = model(inputs).shape
    labels = torch.randint(0, 3, (shape[0], *shape[2:]) if convolution else shape[:-1])

    def weight() -> Tensor:
        w = stored()
        for name in getattr(model[2], "active_adapters", []):  # PEFT's own merging
            w = w + model[2].get_delta_weight(name)
        if kind == "dora":
            w = (model[2].lora_magnitude_vector["default"].weight / w.detach().norm(dim=1))[:, None] * w
        return (w.t() if "conv1d" in kind else w).flatten(1)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return convolved(x, w) if convolution else F.linear(x, w, layer.bias)

    loss = (lambda z: F.cross_entropy(z, labels)) if convolution and head else cross_entropy(labels)
    return LayerCase(model, "2", inputs, loss, "rows" if head else "items", plain, weight)
