"""Design data for which a split network is at a certified local minimum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..inputs.numbers import require_number, require_whole
from .activation import activation_of
from .certificate import SplitCertificate, check_usable, split_certificate
from .hidden_layer import HiddenLayer
from .hidden_layer_search import find_hidden_layer
from .judge import MINIMUM
from .new_neuron import candidates
from .objective import HalfSquaredError, Objective, float64_copy, trainable
from .recorded_pass import record_pass
from .split_curvature import Rows, SplitCurvature


@dataclass(frozen=True, eq=False)
class DesignedMinimum:
    """A regression task with a certified local minimum of a given network, split once.

    The minimum is not a global one.

    Attributes:
        inputs: the inputs, in float64.
        targets: y = f(x) - scale * e, in float64.
        residuals: e, with J^T e = 0, D(e) = 0 and B(e) = I.
        scale: factor of e.
        depth: the part of the loss that one more neuron can remove, at first order in its outgoing weights.
        certificate: certificate of the network on these data with `HalfSquaredError`; its verdict is "minimum".
    """

    inputs: Tensor
    targets: Tensor
    residuals: Tensor
    scale: float
    depth: float
    certificate: SplitCertificate


@torch.enable_grad()
def design_minimum(
    model: nn.Module,
    inputs: Tensor,
    layer: str | nn.Module,
    neuron: int = 0,
    *,
    ratio: float = 0.5,
    depth: float = 0.1,
    next_layer: str | nn.Module | None = None,
    scale: float | None = None,
    dense_limit: int = 1000,
) -> DesignedMinimum:
    """Return targets for which a split of this network is at a local minimum.

    It works for all weights of the network.

    For the loss ``0.5 ||f(x) - y||^2`` with residuals ``f(x) - y = scale * e``, the gradient J^T e and the neuron's D
    and B are linear in e. So J^T e = 0, D(e) = 0 and B(e) = I are linear equations. Their least-norm solution makes a
    minimum that may be shallow: hardly any function of a wider network lies along e. A further neuron can fit a part
    that the equations do not see. A multiple of it is added to e, until that neuron removes the part ``depth`` of the
    loss. The Hessian before the split is J^T J + scale * (a matrix linear in e), positive for a small scale.
    `escape_path` finds such a neuron.

    Args:
        model: a small network whose output is a tensor; all its trainable parameters count. It stays as it is.
        inputs: x, at least as many values f(x) as there are equations.
        layer: the layer that makes the neuron: dotted name, or module.
        neuron: its index.
        ratio: lambda of the split, between 0 and 1.
        depth: the part of the loss by which the network can fall with one more neuron, between 0 and 1; 0 for the
            least-norm residuals.
        next_layer: see `split_certificate`.
        scale: factor of the residuals; None: half of that at which the Hessian before the split becomes singular.
        dense_limit: see `split_certificate`.

    Raises:
        ValueError: the ratio is outside (0, 1); no neuron reaches the depth; there are too few data; the equations
            contradict each other; J^T J is singular; the activation is piecewise linear; the scale is too large; or see
            `split_certificate`.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> design = design_minimum(model, torch.randn(60, 2), layer="0")
        >>> design.certificate.verdict.kind, tuple(design.targets.shape)
        ('minimum', (60, 2))
    """
    ratio = require_number("ratio", ratio, 0, 1, open_low=True, open_high=True)
    depth = require_number("depth", depth, 0, 1, open_high=True, more=", the part of the loss that can be left")
    scale = None if scale is None else require_number("scale", scale, more=", or None")
    dense_limit = require_whole("dense_limit", dense_limit, 0)
    names = find_hidden_layer(model, layer, next_layer)
    copied = float64_copy(model)
    hidden = find_hidden_layer(copied, names.names[0], names.next_name)
    inputs = inputs.double()
    outputs, equations = _equations(copied, inputs, hidden, neuron)
    residuals, reached = _with_depth(equations, _least_norm(equations), depth)
    residuals = residuals.reshape(outputs.shape).to(outputs)
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
    return DesignedMinimum(inputs, targets, residuals, size, reached, certificate)


@dataclass(frozen=True)
class _Equations:
    """``matrix @ e = right`` for the residuals e.

    Attributes:
        matrix: one column for each value f(x); the first rows are J^T, one for each parameter.
        right: the right side.
        parameters: number of rows of J^T.
        new_neurons: derivatives of the values by the outgoing weights of neurons that could be added,
            ``(values, neurons, s)``.
    """

    matrix: Tensor
    right: Tensor
    parameters: int
    new_neurons: Tensor


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
    if not rows.bends:
        raise ValueError("the activation is piecewise linear here (sigma'' = 0), so B = 0 for all data.")
    parameters = trainable(model)
    activation = activation_of(model, Objective(lambda outputs, _: outputs.sum(), (inputs, inputs), "sum"), hidden)
    with torch.no_grad():
        values = activation(rows.h @ candidates(rows.h, rows.has_bias).T)
    columns, new_neurons = [], []
    for value in outputs.reshape(-1):
        terms = rows.curvature(value, parameters)
        new_neurons.append(rows.outgoing_gradients(value, values))
        columns.append(torch.cat([terms.gradient, terms.D.reshape(-1), _upper(terms)]))
    matrix = torch.stack(columns, dim=1)
    one = replace(terms, B=torch.eye(len(terms.B), dtype=matrix.dtype, device=matrix.device))
    right = torch.cat([matrix.new_zeros(len(terms.gradient) + terms.D.numel()), _upper(one)])
    return outputs.detach(), _Equations(matrix, right, len(terms.gradient), torch.stack(new_neurons))


def _upper(terms: SplitCurvature) -> Tensor:
    """Return the entries of B on and above the diagonal."""
    i, j = torch.triu_indices(*terms.B.shape)
    return terms.B[i, j]


def _least_norm(equations: _Equations) -> Tensor:
    """Return the least-norm solution, one vector, refined once."""
    matrix, right = equations.matrix.cpu(), equations.right.cpu()
    inverse = torch.linalg.pinv(matrix, rtol=1e-12)
    e = inverse @ right
    e = e + inverse @ (right - matrix @ e)
    error = float((matrix @ e - right).norm() / right.norm())
    if error > 1e-8:
        count = int(torch.linalg.matrix_rank(matrix))
        raise ValueError(
            f"no residuals solve the {len(right)} equations J^T e = 0, D(e) = 0, B(e) = I (relative error "
            f"{error:.1e}, rank {count}, {len(e)} values f(x)). Give more data, inputs in general position, or a "
            "neuron with outgoing weights."
        )
    return e


def _with_depth(equations: _Equations, e: Tensor, depth: float) -> tuple[Tensor, float]:
    """Return residuals that still solve the equations, and the part of their square that a new neuron can remove.

    g is a unit change of the outputs by a new neuron, and p its part that the equations do not see. With q = ||p||^2,
    the residuals e - a p keep the equations. The neuron removes the part ``(e . g - a q)^2 / ||e - a p||^2`` of the
    loss, which goes to q for large a.
    """
    matrix = equations.matrix.cpu()
    basis = torch.linalg.svd(matrix, full_matrices=False)
    rows = basis.Vh[1e-12 * basis.S[0] < basis.S]
    changes = torch.linalg.qr(equations.new_neurons.cpu().movedim(1, 0)).Q  # (neurons, values, s)
    hidden = changes - rows.T @ (rows @ changes)
    _, sizes, directions = torch.linalg.svd(hidden, full_matrices=False)
    best = int(sizes[:, 0].argmax())
    g = changes[best] @ directions[best, 0]
    p = hidden[best] @ directions[best, 0]
    q, along = float(p @ p), float(e @ g)
    if along > 0:
        g, p, along = -g, -p, -along
    square = float(e @ e)
    if depth and along**2 < depth * square:
        if depth >= q:
            raise ValueError(
                f"depth={depth:g}: on these inputs a new neuron can remove at most {q:.2g} of the loss: ask for less, "
                "or give more inputs."
            )
        a2, a1, a0 = q * (q - depth), -2 * q * along, along**2 - depth * square
        factor = (-a1 + (a1**2 - 4 * a2 * a0) ** 0.5) / (2 * a2)
        # Above the root, so that rounding does not take the last digit of the depth.
        e = e - factor * (1 + 1e-9) * p
    return e, float((e @ g) ** 2 / (e @ e))


def _largest_scale(model: nn.Module, inputs: Tensor, residuals: Tensor, equations: _Equations) -> float:
    """Return the scale at which J^T J + scale * K becomes singular.

    K is the Hessian of <e, f>.
    """
    transposed = equations.matrix[: equations.parameters]
    factor, singular = torch.linalg.cholesky_ex(transposed @ transposed.T)
    if singular:
        raise ValueError(
            f"J^T J of the {equations.parameters} trainable parameters is singular. It has more parameters than "
            "values f(x), or symmetries such as those of ReLU, for which no data make its Hessian positive."
        )
    residual_hessian = Objective(lambda outputs, e: (outputs * e).sum(), (inputs, residuals), "sum").hessian(model)
    relative = torch.linalg.solve_triangular(factor, residual_hessian, upper=False)
    relative = torch.linalg.solve_triangular(factor, relative.T, upper=False)
    lowest = float(torch.linalg.eigvalsh((relative + relative.T) / 2)[0])
    return -1 / lowest if lowest < 0 else 1.0
