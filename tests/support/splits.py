"""Small smooth networks, what splitting one of their neurons does to the Hessian, and residuals that make D vanish."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_fam.landscape import split_neuron

ACTIVATIONS: list[Callable[[], nn.Module]] = [nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus]


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Sequential:
    """A multilayer perceptron in float64; its linear layers are modules 0, 2, 4 ..."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return nn.Sequential(*layers[:-1]).double()


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def full_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """By torch.func, which shares nothing with the code that is tested; parameters in the model's order."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    shapes = {name: p.shape for name, p in parameters.items()}

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return half_squared_error(torch.func.functional_call(model, values, (x,)), y)

    return torch.func.hessian(loss)(torch.cat([p.reshape(-1) for p in parameters.values()]))


@dataclass
class SplitCase:
    """A network with data, before and after neuron 0 of one layer is split."""

    model: nn.Sequential
    x: Tensor
    y: Tensor
    layer: int
    neuron: int
    ratio: float

    @property
    def wide(self) -> nn.Sequential:
        wide = copy.deepcopy(self.model)
        split_neuron(wide, str(self.layer), self.neuron, self.ratio)
        return wide

    def change_of_coordinates(self) -> Tensor:
        """T: displacements (theta, q, w) to displacements of the wide network's parameters, column by column.

        u1 + p + (1 - ratio) q, u2 + p - ratio q, v1 + ratio V + w, v2 + (1 - ratio) V - w.
        """
        first, second = self.model[self.layer], self.model[self.layer + 2]
        inputs, outputs = first.in_features, second.out_features
        q_size = inputs + (first.bias is not None)
        narrow = sum(p.numel() for p in self.model.parameters())
        columns = []
        for k in range(narrow + q_size + outputs):
            unit = torch.zeros(narrow + q_size + outputs, dtype=torch.float64)
            unit[k] = 1
            theta, q, w = unit.split([narrow, q_size, outputs])
            columns.append(self._displacement(theta, q, w))
        return torch.stack(columns, dim=1)

    def _displacement(self, theta: Tensor, q: Tensor, w: Tensor) -> Tensor:
        r, n = self.neuron, self.ratio
        parts, start = [], 0
        for name, parameter in self.model.named_parameters():
            part = theta[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            index, kind = name.split(".")
            if int(index) == self.layer:
                own = q[: part.shape[1]] if kind == "weight" else q[-1]
                part = torch.cat([part, (part[r] - n * own)[None]])
                part[r] += (1 - n) * own
            elif int(index) == self.layer + 2 and kind == "weight":
                part = torch.cat([part, ((1 - n) * part[:, r] - w)[:, None]], dim=1)
                part[:, r] = n * part[:, r] + w
            parts.append(part.reshape(-1))
        return torch.cat(parts)


def residuals_with(model: nn.Sequential, x: Tensor, layer: int, neuron: int, d_vanishes: bool, seed: int) -> Tensor:
    """Random e with J^T e = 0, and D(e) = 0 if asked: y = f(x) - e makes the network a critical point.

    From the definitions of J and D, by torch.func; nothing of hf_fam.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobians = torch.func.jacrev(lambda values: torch.func.functional_call(model, values, (x,)).reshape(-1))(
        parameters
    )
    rows = [jacobian.flatten(1).T for jacobian in jacobians.values()]
    if d_vanishes:
        rows.append(_matrix_of_d(model, x, layer, neuron))
    equations = torch.cat(rows)
    values, vectors = torch.linalg.eigh(equations.T @ equations)
    null = vectors[:, values < 1e-12 * values[-1]]
    assert null.shape[1] > 0, "more data are needed"
    e = null @ torch.randn(null.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    e = e - torch.linalg.pinv(equations, rtol=1e-12) @ (equations @ e)
    return e.view(len(x), -1) / e.norm()


def _matrix_of_d(model: nn.Sequential, x: Tensor, layer: int, neuron: int) -> Tensor:
    """D_{i,s} as a linear function of e, row by row: sum_a slope_a h_ai df_ao/dy_s e_ao."""
    with torch.no_grad():
        h = model[:layer](x)
    n = model[layer](h).detach().requires_grad_()
    z = model[layer + 1](n)
    slope = torch.autograd.grad(z[:, neuron].sum(), n)[0][:, neuron]
    y = model[layer + 2](z).detach()
    bias = model[layer].bias is not None
    h = torch.cat([h, h.new_ones(len(h), 1)], dim=1) if bias else h
    tails = torch.stack(
        [torch.func.jacrev(lambda one: model[layer + 3 :](one[None])[0])(row) for row in y]
    )  # (a, o, s)
    return torch.einsum("a,ai,aos->isao", slope, h, tails).reshape(h.shape[1] * y.shape[1], -1)


def inertia(matrix: Tensor, tolerance: float = 1e-11) -> tuple[int, int, int]:
    """How many eigenvalues are negative, zero and positive, relative to the largest."""
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    scale = values.abs().max() * tolerance
    return int((values < -scale).sum()), int((values.abs() <= scale).sum()), int((values > scale).sum())
