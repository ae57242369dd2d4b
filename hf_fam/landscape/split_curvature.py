"""B and D, the terms that splitting a neuron adds to the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layer.kinds import linear_map_of
from ..layer.linear_map import ConvolutionMap
from .hidden_layer import HiddenLayer
from .neuron_weights import CONVOLUTIONS, channels_in_place, channels_last
from .objective import Objective, flat_gradient, trainable
from .recorded_pass import RecordedPass, record_pass

_DEPENDS_ON_OTHERS = (
    "the input of '{next_name}' from neuron {neuron} depends on other neurons or other rows of '{name}'. Choose two "
    "layers with only an elementwise activation between them: no normalization, attention or gate."
)


@dataclass
class SplitCurvature:
    """Sums over the data that decide the effect of a split on a critical point.

    Attributes:
        B: sum_a (delta_a . v) sigma''(n_a) h_a h_a^T, shape ``(i, i)``.
        D: sum_a sigma'(n_a) h_a delta_a^T, shape ``(i, s)``; a convolution above counts as s all places of its kernel.
        gradient: of the objective in all trainable parameters, one vector.
        v: the neuron's outgoing weights, shape ``(s,)``.
        loss: the objective.
        terms_b: the sum of the absolute values of B's terms if ``|sigma''|`` were 1.
        terms_d: the same for D and ``|sigma'|``.
        weight_decay: alpha of the objective.
    """

    B: Tensor
    D: Tensor
    gradient: Tensor
    v: Tensor
    loss: float = 0.0
    terms_b: float = 0.0
    terms_d: float = 0.0
    weight_decay: float = 0.0

    @property
    def D_orthogonal(self) -> Tensor:
        """Return D without its part along v.

        D v is the gradient of the neuron's incoming weights, which is 0 at a critical point without weight decay.
        """
        square = self.v @ self.v
        return self.D - torch.outer(self.D @ self.v, self.v) / square if square > 0 else self.D

    def block(self, ratio: float) -> Tensor:
        """Return [[ratio (1 - ratio) B, D], [D^T, 0]].

        The split adds it to the Hessian, up to congruence. Weight decay alpha allows only the ratio 1/2. It adds
        alpha / 2 to the diagonal of the upper block and 2 alpha to that of the lower block.
        """
        i, s = self.D.shape
        upper = ratio * (1 - ratio) * self.B + self.weight_decay / 2 * torch.eye(i).to(self.B)
        lower = 2 * self.weight_decay * torch.eye(s).to(self.D)
        return torch.cat([torch.cat([upper, self.D], dim=1), torch.cat([self.D.T, lower], dim=1)])


def split_curvature(model: nn.Module, objective: Objective, hidden: HiddenLayer, neuron: int) -> SplitCurvature:
    """Return B and D of one neuron over all batches, for a model in float64.

    Raises:
        ValueError: more than an elementwise activation lies between the two layers.
    """
    _check_no_gate(model, objective, hidden)
    total: SplitCurvature | None = None
    losses = objective.batch_losses(model)
    while True:
        with record_pass(hidden) as recorded_pass:
            loss = next(losses, None)
        if loss is None:
            break
        term = Rows(hidden, neuron, recorded_pass).curvature(loss, trainable(model))
        total = term if total is None else _add(total, term)
    assert total is not None  # Objective refuses data without batches
    if objective.weight_decay:
        total.loss, total.gradient = objective.value_and_gradient(model)
        total.weight_decay = objective.weight_decay
    return total


def _check_no_gate(model: nn.Module, objective: Objective, hidden: HiddenLayer) -> None:
    """Check that the next layer's input depends on no other weight matrix.

    The pre-activations are held fixed for the check.

    Raises:
        ValueError: it does, so a neuron is more than a function of its pre-activation.
    """
    with record_pass(hidden, cut=True) as recorded_pass:
        next(objective.batch_losses(model))
    matrices = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    next_inputs = sum((z.sum() for z in recorded_pass.activations if z.requires_grad), torch.zeros(()))
    if not next_inputs.requires_grad:
        return
    gradients = torch.autograd.grad(next_inputs, list(matrices.values()), allow_unused=True)
    for name, gradient in zip(matrices, gradients, strict=True):
        if gradient is not None and bool(gradient.any()):
            raise ValueError(
                f"the input of '{hidden.next_name}' depends on '{name}', not only on '{hidden.names[0]}'. Choose "
                "layers without a gate or another branch, because B and D need a function of the pre-activation alone."
            )


class Rows:
    """The rows of one neuron: items, tokens or positions, over all calls of its layer.

    Args:
        hidden: the neuron's layer.
        neuron: its index.
        recorded_pass: inputs and outputs of the two layers, see `record_pass`.

    Raises:
        ValueError: the layers did not run, or are not connected by an elementwise activation.
    """

    def __init__(self, hidden: HiddenLayer, neuron: int, recorded_pass: RecordedPass) -> None:
        if not recorded_pass.pre_activations or len(recorded_pass.pre_activations) != len(recorded_pass.activations):
            raise ValueError(
                f"'{hidden.names[0]}' ran {len(recorded_pass.pre_activations)} times and '{hidden.next_name}' "
                f"{len(recorded_pass.activations)} times in a forward pass: choose two layers with only an elementwise "
                "activation between them."
            )
        self.hidden, self.neuron, self.recorded = hidden, neuron, recorded_pass
        self.v = hidden.fan_out[:, neuron]
        features = linear_map_of(hidden.incoming[0]).feature_rows
        bias = hidden.incoming[0].bias
        self.has_bias = bias is not None and bias.requires_grad
        self.calls: list[_Call] = []
        for x, n, z in zip(
            recorded_pass.features, recorded_pass.pre_activations, recorded_pass.activations, strict=True
        ):
            h = features(x.detach()).flatten(0, -2)
            if self.has_bias:
                h = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
            shape = channels_last(hidden.incoming[0], n).shape[:-1]
            self.calls.append(_Call(h, *self._derivatives(n, z), shape))

    @property
    def h(self) -> Tensor:
        """Return the features of all rows, ``(rows, i)``."""
        return torch.cat([call.h for call in self.calls])

    @property
    def bends(self) -> bool:
        """Return True if sigma'' is not 0 in some row."""
        return any(bool(call.second.any()) for call in self.calls)

    def curvature(self, loss: Tensor, parameters: list[nn.Parameter]) -> SplitCurvature:
        """Return B, D and the gradient of a scalar; the graph is kept."""
        if not loss.requires_grad:
            raise ValueError("the loss has no gradient: it is detached, or does not depend on the model's parameters.")
        record = self.recorded
        gradients = torch.autograd.grad(
            loss, [*record.next_pre_activations, *record.activations], retain_graph=True, materialize_grads=True
        )
        count = len(self.calls)
        result = SplitCurvature(
            B=torch.zeros(()),
            D=torch.zeros(()),
            gradient=flat_gradient(loss, parameters, retain_graph=True),
            v=self.v,
            loss=float(loss.detach()),
        )
        b: list[Tensor] = []
        d: list[Tensor] = []
        for call, n, delta, dz in zip(
            self.calls, record.pre_activations, gradients[:count], gradients[count:], strict=True
        ):
            pull = channels_last(self.hidden.incoming[0], dz.reshape(n.shape))[..., self.neuron].reshape(-1)
            b.append(call.h.T @ ((pull * call.second)[:, None] * call.h))
            d.append(self._mixed(call.first[:, None] * call.h, delta, call.shape))
            result.terms_b += float(pull.abs() @ call.h.square().sum(dim=1))
            result.terms_d += float(self._mixed(call.h.abs(), delta.abs(), call.shape).norm())
        result.B, result.D = torch.stack(b).sum(0), torch.stack(d).sum(0)
        return result

    def outgoing_gradients(self, loss: Tensor, values: Tensor) -> Tensor:
        """Return the gradients that outgoing weights of neurons with these values would have.

        Args:
            loss: a scalar; the graph is kept.
            values: one column for each neuron that could be added, ``(rows, neurons)``.

        Returns:
            Gradients, ``(neurons, s)``.
        """
        deltas = torch.autograd.grad(
            loss, self.recorded.next_pre_activations, retain_graph=True, materialize_grads=True
        )
        parts = values.split([len(call.h) for call in self.calls])
        return torch.stack(
            [self._mixed(part, delta, call.shape) for call, part, delta in zip(self.calls, parts, deltas, strict=True)]
        ).sum(0)

    def _mixed(self, values: Tensor, delta: Tensor, shape: torch.Size) -> Tensor:
        """Return sum_a values_a delta_a^T, ``(i, s)``: the gradient of the outgoing weights if a neuron were a value.

        Args:
            values: ``(rows, i)``.
            delta: the gradient of the next layer's outputs.
            shape: that of the rows.
        """
        outgoing = self.hidden.outgoing
        if isinstance(outgoing, CONVOLUTIONS):
            images = channels_in_place(outgoing, values.view(*shape, -1))
            kernel: tuple[int, ...] = outgoing.kernel_size
            patches = ConvolutionMap(
                1,
                values.shape[1],
                kernel,
                lambda: values,
                stride=outgoing.stride,
                padding=outgoing.padding,
                dilation=outgoing.dilation,
                padding_mode=outgoing.padding_mode,
            ).feature_rows(images)
            rows = channels_last(outgoing, delta).flatten(0, -2)
            product = patches.flatten(0, -2).T @ rows
            return product.unflatten(0, (values.shape[1], -1)).movedim(-1, 1).flatten(1)
        if self.hidden.positions > 1:
            images = values.view(len(delta), -1, values.shape[1])
            return torch.einsum("npi,ns->isp", images, delta).flatten(1)
        return values.T @ delta.reshape(-1, delta.shape[-1])

    def _derivatives(self, n: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma' and sigma'' in every row, by automatic differentiation."""
        name, next_name = self.hidden.names[0], self.hidden.next_name
        if n.numel() != z.numel() or (n.shape != z.shape and self.hidden.positions == 1):
            raise ValueError(
                f"'{name}' makes values of shape {tuple(n.shape)} and '{next_name}' reads {tuple(z.shape)}: choose two "
                "layers with only an elementwise activation between them."
            )
        values = self._of_neuron(z.reshape(n.shape))
        plain = None
        if z.requires_grad:
            (plain,) = torch.autograd.grad(values.sum(), n, retain_graph=True, allow_unused=True)
        if plain is None:
            raise ValueError(f"'{next_name}' does not read what '{name}' makes.")
        signs = (
            torch.empty(values.shape, dtype=z.dtype, device=z.device).bernoulli_(0.5, generator=_fixed_generator(z)) * 2
            - 1
        )
        (jacobian,) = torch.autograd.grad((signs * values).sum(), n, create_graph=True, materialize_grads=True)
        slope = self._of_neuron(jacobian) * signs
        # Random signs show if an activation depends on another row or column than its own.
        others = jacobian.detach().clone()
        self._of_neuron(others).zero_()
        if bool(others.any()) or not torch.allclose(self._of_neuron(plain), slope, rtol=1e-9, atol=1e-12):
            raise ValueError(_DEPENDS_ON_OTHERS.format(name=name, next_name=next_name, neuron=self.neuron))
        second = torch.zeros_like(slope)
        if slope.requires_grad:
            (gradient,) = torch.autograd.grad(slope.sum(), n, retain_graph=True, materialize_grads=True)
            second = self._of_neuron(gradient)
        return slope.detach().reshape(-1), second.detach().reshape(-1)

    def _of_neuron(self, values: Tensor) -> Tensor:
        """Return a view of the neuron's own values."""
        return channels_last(self.hidden.incoming[0], values)[..., self.neuron]


@dataclass
class _Call:
    """The rows of one call of the layer: features, sigma', sigma'' and the shape in which they lie."""

    h: Tensor
    first: Tensor
    second: Tensor
    shape: torch.Size


def _fixed_generator(like: Tensor) -> torch.Generator:
    """Return a separate generator, which leaves the training's random state alone."""
    return torch.Generator(like.device).manual_seed(0)


def _add(one: SplitCurvature, other: SplitCurvature) -> SplitCurvature:
    return SplitCurvature(
        B=one.B + other.B,
        D=one.D + other.D,
        gradient=one.gradient + other.gradient,
        v=one.v,
        loss=one.loss + other.loss,
        terms_b=one.terms_b + other.terms_b,
        terms_d=one.terms_d + other.terms_d,
    )
