"""B and D, the terms that splitting a neuron adds to the Hessian."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .hidden_layer import HiddenLayer
from .objective import Objective, flat_gradient, trainable

_DEPENDS_ON_OTHERS = (
    "the input of '{next_name}' from neuron {neuron} depends on other neurons or other rows of '{name}': choose two "
    "layers with only an elementwise activation between them (no normalization, attention or gate)."
)


@dataclass
class SplitCurvature:
    """Sums over the data that decide the effect of a split on a critical point.

    Attributes:
        B: sum_a (delta_a . v) sigma''(n_a) h_a h_a^T, shape ``(i, i)``.
        D: sum_a sigma'(n_a) h_a delta_a^T, shape ``(i, s)``.
        gradient: of the loss in all trainable parameters, one vector.
        v: the neuron's outgoing weights, shape ``(s,)``.
        loss: the loss.
        scale_b: the sum of the absolute values of B's terms (their norms), against which rounding is judged.
        scale_d: the same for D.
        max_second_derivative: the largest ``|sigma''|``; 0 for a piecewise linear activation.
    """

    B: Tensor
    D: Tensor
    gradient: Tensor
    v: Tensor
    loss: float = 0.0
    scale_b: float = 0.0
    scale_d: float = 0.0
    max_second_derivative: float = 0.0

    @property
    def D_orthogonal(self) -> Tensor:
        """Return D without its part along v.

        D v is the gradient of the neuron's incoming weights, which is 0 at a critical point.
        """
        square = self.v @ self.v
        return self.D - torch.outer(self.D @ self.v, self.v) / square if square > 0 else self.D

    def block(self, ratio: float) -> Tensor:
        """Return [[ratio (1 - ratio) B, D], [D^T, 0]].

        The split adds it to the Hessian, up to congruence.
        """
        corner = torch.zeros(self.D.shape[1], self.D.shape[1], dtype=self.D.dtype, device=self.D.device)
        return torch.cat(
            [torch.cat([ratio * (1 - ratio) * self.B, self.D], dim=1), torch.cat([self.D.T, corner], dim=1)]
        )


@dataclass
class RecordedPass:
    """Inputs and outputs of the two layers in one forward pass, one entry for every call.

    All tensors are in the graph.

    Attributes:
        features: h, inputs of the first layer.
        pre_activations: n, its outputs.
        activations: inputs of the next layer.
        next_pre_activations: its outputs.
    """

    features: list[Tensor] = field(default_factory=list)
    pre_activations: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    next_pre_activations: list[Tensor] = field(default_factory=list)


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
                f"the input of '{hidden.next_name}' depends on '{name}', not only on '{hidden.names[0]}': choose "
                "layers without a gate or another branch, because B and D need a function of the pre-activation alone."
            )


@contextmanager
def record_pass(hidden: HiddenLayer, cut: bool = False) -> Iterator[RecordedPass]:
    """Record every call of the two layers inside the ``with`` block.

    With ``cut``, pre-activations become leaves.
    """
    recorded_pass = RecordedPass()

    def on_first(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.detach().requires_grad_() if cut else output
        recorded_pass.features.append(args[0])
        recorded_pass.pre_activations.append(output)
        return output.clone()  # an activation in place must not overwrite the recorded output

    def on_next(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        recorded_pass.activations.append(args[0])
        recorded_pass.next_pre_activations.append(output)
        return output.clone()

    hooks = [hidden.incoming[0].register_forward_hook(on_first), hidden.outgoing.register_forward_hook(on_next)]
    try:
        yield recorded_pass
    finally:
        for hook in hooks:
            hook.remove()


class Rows:
    """The rows (items, tokens) of a neuron in one forward pass, with derivatives of its activation.

    Args:
        hidden: the two layers.
        neuron: index of the neuron.
        recorded_pass: their inputs and outputs, see `record_pass`.

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
        self.hidden, self.neuron = hidden, neuron
        self.v = hidden.fan_out[:, neuron]
        self.next_pre_activations = recorded_pass.next_pre_activations
        first, second = zip(
            *map(self._derivatives, recorded_pass.pre_activations, recorded_pass.activations), strict=True
        )
        self.first, self.second = torch.cat(first), torch.cat(second)
        rows = [h.detach().reshape(-1, h.shape[-1]) for h in recorded_pass.features]
        self.h = torch.cat(rows)
        bias = hidden.incoming[0].bias
        if bias is not None and bias.requires_grad:
            self.h = torch.cat([self.h, self.h.new_ones(len(self.h), 1)], dim=1)

    def curvature(self, loss: Tensor, parameters: list[nn.Parameter]) -> SplitCurvature:
        """Return B, D and the gradient of a scalar; the graph is kept."""
        if not loss.requires_grad:
            raise ValueError("the loss has no gradient: it is detached, or does not depend on the model's parameters.")
        deltas = torch.autograd.grad(loss, self.next_pre_activations, retain_graph=True, materialize_grads=True)
        delta = torch.cat([d.reshape(-1, d.shape[-1]) for d in deltas])
        pull = delta @ self.v
        norms = self.h.norm(dim=1)
        return SplitCurvature(
            B=self.h.T @ ((pull * self.second)[:, None] * self.h),
            D=(self.first[:, None] * self.h).T @ delta,
            gradient=flat_gradient(loss, parameters, retain_graph=True),
            v=self.v,
            loss=float(loss.detach()),
            scale_b=float((pull.abs() * self.second.abs() * norms.square()).sum()),
            scale_d=float((self.first.abs() * norms * delta.norm(dim=1)).sum()),
            max_second_derivative=float(self.second.abs().max()),
        )

    def _derivatives(self, n: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma' and sigma'' in every row, by automatic differentiation."""
        name, next_name = self.hidden.names[0], self.hidden.next_name
        if n.shape != z.shape:
            raise ValueError(
                f"'{name}' makes values of shape {tuple(n.shape)} and '{next_name}' reads {tuple(z.shape)}: choose two "
                "layers with only an elementwise activation between them."
            )
        plain = None
        if z.requires_grad:
            (plain,) = torch.autograd.grad(z[..., self.neuron].sum(), n, retain_graph=True, allow_unused=True)
        if plain is None:
            raise ValueError(f"'{next_name}' does not read what '{name}' makes.")
        signs = (
            torch.empty(z.shape[:-1], dtype=z.dtype, device=z.device).bernoulli_(0.5, generator=_fixed_generator(z)) * 2
            - 1
        )
        (jacobian,) = torch.autograd.grad(
            (signs * z[..., self.neuron]).sum(), n, create_graph=True, materialize_grads=True
        )
        slope = jacobian[..., self.neuron] * signs
        # Signs tell rows apart: the activation must depend on its own row and column alone.
        others = jacobian.detach().clone()
        others[..., self.neuron] = 0
        if bool(others.any()) or not torch.allclose(plain[..., self.neuron], slope, rtol=1e-9, atol=1e-12):
            raise ValueError(_DEPENDS_ON_OTHERS.format(name=name, next_name=next_name, neuron=self.neuron))
        second = torch.zeros_like(slope)
        if slope.requires_grad:
            (gradient,) = torch.autograd.grad(slope.sum(), n, retain_graph=True, materialize_grads=True)
            second = gradient[..., self.neuron]
        return slope.detach().reshape(-1), second.detach().reshape(-1)


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
        scale_b=one.scale_b + other.scale_b,
        scale_d=one.scale_d + other.scale_d,
        max_second_derivative=max(one.max_second_derivative, other.max_second_derivative),
    )
