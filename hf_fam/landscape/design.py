"""Design data for which a split network is at a certified local minimum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .certificate import MINIMUM, SplitCertificate, check_usable, split_certificate
from .hidden_layer import HiddenLayer, find_hidden_layer
from .objective import HalfSquaredError, Objective, float64_copy, trainable
from .split_curvature import Rows, SplitCurvature, record_pass


@dataclass(frozen=True, eq=False)
class DesignedMinimum:
    """A regression task with a certified local minimum of a given network, split once.

    The minimum is not a global one.

    Attributes:
        inputs: the inputs, in float64.
        targets: y = f(x) - scale * e, in float64.
        residuals: e, of least norm among those with J^T e = 0, D(e) = 0, B(e) = I.
        scale: factor of e.
        certificate: certificate of the network on these data with `HalfSquaredError`; its verdict is "minimum".
    """

    inputs: Tensor
    targets: Tensor
    residuals: Tensor
    scale: float
    certificate: SplitCertificate


@torch.enable_grad()
def design_minimum(
    model: nn.Module,
    inputs: Tensor,
    layer: str | nn.Module,
    neuron: int = 0,
    *,
    ratio: float = 0.5,
    next_layer: str | nn.Module | None = None,
    scale: float | None = None,
    dense_limit: int = 1000,
) -> DesignedMinimum:
    """Return targets for which a split of this network is at a local minimum.

    It works for all weights of the network.

    For the loss ``0.5 ||f(x) - y||^2`` with residuals ``f(x) - y = scale * e``, the gradient J^T e and the neuron's D
    and B are linear in e. So J^T e = 0, D(e) = 0 and B(e) = I are linear equations, and e is their least-norm
    solution. The Hessian before the split is J^T J + scale * (a matrix linear in e), positive for a small scale.
    `escape_path` leads from there to a lower loss.

    Args:
        model: a small network whose output is a tensor; all its trainable parameters count. It stays as it is.
        inputs: x, at least as many values f(x) as there are equations.
        layer: the layer that makes the neuron: dotted name, or module.
        neuron: its index.
        ratio: lambda of the split, between 0 and 1.
        next_layer: see `split_certificate`.
        scale: factor of the residuals; None: half of that at which the Hessian before the split becomes singular.
        dense_limit: see `split_certificate`.

    Raises:
        ValueError: the ratio is outside (0, 1), there are too few data, the equations contradict each other, J^T J is
            singular, the activation is piecewise linear, the scale is too large, or see `split_certificate`.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> design = design_minimum(model, torch.randn(60, 2), layer="0")
        >>> design.certificate.verdict.kind, tuple(design.targets.shape)
        ('minimum', (60, 2))
    """
    if not 0 < ratio < 1:
        raise ValueError(f"ratio={ratio!r}: give a number between 0 and 1, where the local minima lie for B > 0.")
    names = find_hidden_layer(model, layer, next_layer)
    copied = float64_copy(model)
    hidden = find_hidden_layer(copied, names.names[0], names.next_name)
    inputs = inputs.double()
    outputs, equations = _equations(copied, inputs, hidden, neuron)
    residuals = _least_norm(equations, outputs)
    size = _largest_scale(copied, inputs, residuals, equations) / 2 if scale is None else scale
    targets = outputs - size * residuals
    certificate = split_certificate(
        copied,
        HalfSquaredError(),
        (inputs, targets),
        hidden.names[0],
        neuron,
        ratio,
        next_layer=hidden.next_name,
        dense_limit=dense_limit,
    )
    if certificate.verdict.kind != MINIMUM:
        raise ValueError(
            f"no certified minimum with scale={size:.3g}: {certificate.verdict.reason}. If neurons are nearly linear "
            "on the inputs (small weights), the equations are badly conditioned: try larger inputs, or another network."
        )
    return DesignedMinimum(inputs, targets, residuals, size, certificate)


@dataclass(frozen=True)
class _Equations:
    """``matrix @ e = right`` for the residuals e; the first rows of the matrix are J^T, one for each parameter."""

    matrix: Tensor
    right: Tensor
    parameters: int


def _equations(model: nn.Module, inputs: Tensor, hidden: HiddenLayer, neuron: int) -> tuple[Tensor, _Equations]:
    """Return the outputs, and one column of equations for each value f(x).

    A column holds gradient, D and B of the value as if it were the loss.
    """
    neuron = check_usable(hidden, neuron)
    with record_pass(hidden) as recorded_pass:
        outputs = model(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"the model returns a {type(outputs).__name__}: give design_minimum a model that returns a tensor."
        )
    rows = Rows(hidden, neuron, recorded_pass)
    if not bool(rows.second.any()):
        raise ValueError("the activation is piecewise linear here (sigma'' = 0), so B = 0 for all data.")
    parameters = trainable(model)
    columns = []
    for value in outputs.reshape(-1):
        terms = rows.curvature(value, parameters)
        columns.append(torch.cat([terms.gradient, terms.D.reshape(-1), _upper(terms)]))
    matrix = torch.stack(columns, dim=1)
    one = replace(terms, B=torch.eye(len(terms.B), dtype=matrix.dtype, device=matrix.device))
    right = torch.cat([matrix.new_zeros(len(terms.gradient) + terms.D.numel()), _upper(one)])
    return outputs.detach(), _Equations(matrix, right, len(terms.gradient))


def _upper(terms: SplitCurvature) -> Tensor:
    """Return the entries of B on and above the diagonal."""
    i, j = torch.triu_indices(*terms.B.shape)
    return terms.B[i, j]


def _least_norm(equations: _Equations, outputs: Tensor) -> Tensor:
    """Return the least-norm solution in the outputs' shape, refined once."""
    matrix, right = equations.matrix.cpu(), equations.right.cpu()
    inverse = torch.linalg.pinv(matrix, rtol=1e-12)
    e = inverse @ right
    e = e + inverse @ (right - matrix @ e)
    error = float((matrix @ e - right).norm() / right.norm())
    if error > 1e-8:
        count = int(torch.linalg.matrix_rank(matrix))
        raise ValueError(
            f"no residuals solve the {len(right)} equations J^T e = 0, D(e) = 0, B(e) = I (relative error "
            f"{error:.1e}, rank {count}, {len(e)} values f(x)): give more data, inputs in general position, or a "
            "neuron with outgoing weights."
        )
    return e.reshape(outputs.shape).to(outputs)


def _largest_scale(model: nn.Module, inputs: Tensor, residuals: Tensor, equations: _Equations) -> float:
    """Return the scale at which J^T J + scale * K becomes singular.

    K is the Hessian of <e, f>.
    """
    transposed = equations.matrix[: equations.parameters]
    factor, singular = torch.linalg.cholesky_ex(transposed @ transposed.T)
    if singular:
        raise ValueError(
            f"J^T J of the {equations.parameters} trainable parameters is singular: it has more parameters than "
            "values f(x), or symmetries (such as ReLU's), and no data make its Hessian positive."
        )
    residual_hessian = Objective(lambda outputs, e: (outputs * e).sum(), (inputs, residuals), "sum").hessian(model)
    relative = torch.linalg.solve_triangular(factor, residual_hessian, upper=False)
    relative = torch.linalg.solve_triangular(factor, relative.T, upper=False)
    lowest = float(torch.linalg.eigvalsh((relative + relative.T) / 2)[0])
    return -1 / lowest if lowest < 0 else 1.0
